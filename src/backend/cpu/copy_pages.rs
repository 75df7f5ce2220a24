//! The twin of `shaders/copy_pages.wgsl`.

use super::*;

/// See [`CopyPages`].
pub(super) fn run(op: CopyPages<'_, Cpu>) {
    let (copies, page_words) = (op.copies.view::<PageCopy>(), op.params.page_words as usize);
    let copies = &copies[..op.n_copies as usize];
    let mut plane = op.plane.view_mut::<u32>();
    checks::check_copies(copies, plane.len() / page_words);
    for &PageCopy { from, to } in copies {
        let [from, to] = [from, to].map(|page_id| page_id as usize * page_words);
        plane.copy_within(from..from + page_words, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(copies: &[[u32; 2]]) {
        let cpu = Cpu::new(Some(1)).expect("the CPU is here");
        let filled = |words: &[u32]| {
            let buf = cpu.alloc("words", words.len()).expect("memory");
            cpu.upload(&buf, 0, bytemuck::cast_slice(words)).expect("words go up");
            buf
        };
        let (plane, pairs) = (filled(&[0; 8]), filled(copies.as_flattened()));
        let params = CopyPagesParams { page_words: 2, reserved: [0; 3] };
        let op = CopyPages { plane: &plane, copies: &pairs, n_copies: copies.len() as u32, params };
        cpu.copy_pages(&mut cpu.begin(), op);
    }

    #[test]
    #[should_panic(expected = "two copies to one page")]
    fn two_copies_to_one_page_are_seen() {
        copy(&[[0, 2], [1, 2]]);
    }

    #[test]
    #[should_panic(expected = "a page is copied from and to")]
    fn a_chain_of_copies_is_seen() {
        copy(&[[1, 2], [0, 1]]);
    }

    #[test]
    #[should_panic(expected = "there are 4 pages")]
    fn a_page_that_is_not_there_is_seen() {
        copy(&[[4, 0]]);
    }
}
