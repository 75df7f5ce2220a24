//! The twin of `shaders/copy_pages.wgsl`.

use super::*;

/// See [`CopyPages`].
pub(super) fn run(op: CopyPages<'_, Cpu>) {
    let (copies, page_words) = (op.copies.view::<PageCopy>(), op.params.page_words as usize);
    let copies = &copies[..op.n_copies as usize];
    assert_apart(copies);
    let mut plane = op.plane.view_mut::<u32>();
    for &PageCopy { from, to } in copies {
        let [from, to] = [from, to].map(|page_id| page_id as usize * page_words);
        plane.copy_within(from..from + page_words, to);
    }
}

/// Devices copy in any order: no page may be written that another copy writes or reads.
fn assert_apart(copies: &[PageCopy]) {
    let mut written: Vec<u32> = copies.iter().map(|copy| copy.to).collect();
    written.sort_unstable();
    assert!(written.windows(2).all(|pair| pair[0] < pair[1]), "two copies to one page: {copies:?}");
    let is_apart = copies.iter().all(|copy| written.binary_search(&copy.from).is_err());
    assert!(is_apart, "a page is copied from and to: {copies:?}");
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
    #[should_panic(expected = "out of range")]
    fn a_page_that_is_not_there_is_seen() {
        copy(&[[4, 0]]);
    }
}
