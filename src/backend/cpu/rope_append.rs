//! The twin of `shaders/rope_append.wgsl`.

use super::rows::InverseRms;
use super::simd::Kernel;
use super::*;
use half::{bf16, f16};

/// See [`RopeAppend`].
pub(super) fn run(cpu: &Cpu, op: RopeAppend<'_, Cpu>) {
    match op.params.page.dtype {
        d if d == Dtype::F32 as u32 => append(cpu, op, |x| x),
        d if d == Dtype::F16 as u32 => append(cpu, op, f16::from_f32),
        _ => append(cpu, op, bf16::from_f32),
    }
}

fn append<T: Pod>(cpu: &Cpu, op: RopeAppend<'_, Cpu>, round: impl Fn(f32) -> T) {
    let RopeAppendParams { page, cap, n_heads, n_kv_heads, head_dim, max_positions, eps, .. } = op.params;
    let [cap, n_heads, n_kv_heads, head_dim] = [cap, n_heads, n_kv_heads, head_dim].map(|n| n as usize);
    let width = (n_heads + 2 * n_kv_heads) * head_dim;
    let (places, table) = (op.places.view::<Place>(), op.page_table.view::<u32>());
    let rotary = op.rotary.view::<[f32; 2]>();
    let [q_gain, k_gain] = [op.q_gain, op.k_gain].map(|gain| gain.map(|gain| gain.view::<f32>()));
    let (mut qkv, mut plane) = (op.qkv.view_mut::<f32>(), op.plane.view_mut::<T>());
    let mut key = vec![0.0; head_dim];
    // A member without rows may have no gains either.
    for (member, n_rows) in rows::n_rows(op.extents).into_iter().enumerate().filter(|&(_, n_rows)| n_rows > 0) {
        let gain = |gain: &Option<Ref<[f32]>>| gain.as_ref().map(|gain| gain[member * head_dim..][..head_dim].to_vec());
        let [q_gain, k_gain] = [gain(&q_gain), gain(&k_gain)];
        for index in (member * cap..member * cap + n_rows).filter(|&index| places[index].live == 1) {
            let Place { table: first, position, .. } = places[index];
            assert!(position < max_positions, "a position has its row of the rotary table");
            let angles = &rotary[(member * max_positions as usize + position as usize) * (head_dim / 2)..];
            let row = &mut qkv[index * width..][..width];
            let (q, kv) = row.split_at_mut(n_heads * head_dim);
            let (k, v) = kv.split_at(n_kv_heads * head_dim);
            for head in q.chunks_exact_mut(head_dim) {
                cpu.isa.run(Rotate { head, gain: q_gain.as_deref(), eps: eps[member], angles });
            }
            let page_id = table[(first + position / page.page_tokens) as usize] as usize;
            let cells = Cells::new(&page, page_id, n_kv_heads, head_dim, size_of::<T>());
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                key.copy_from_slice(k);
                cpu.isa.run(Rotate { head: &mut key, gain: k_gain.as_deref(), eps: eps[member], angles });
                let at = cells.key(head, position % page.page_tokens);
                plane[at..at + head_dim].iter_mut().zip(&key).for_each(|(cell, x)| *cell = round(*x));
                let at = cells.value(head, position % page.page_tokens);
                plane[at..at + head_dim].iter_mut().zip(v).for_each(|(cell, x)| *cell = round(*x));
            }
        }
    }
}

/// Norm where there is a gain, then the rotation of each pair (i, i + half).
struct Rotate<'a> {
    head: &'a mut [f32],
    gain: Option<&'a [f32]>,
    eps: f32,
    angles: &'a [[f32; 2]],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Rotate { head, gain, eps, angles } = self;
        if let Some(gain) = gain {
            let factor = InverseRms { x: head, eps }.run();
            head.iter_mut().zip(gain).for_each(|(x, gain)| *x = factor * *x * gain);
        }
        let (first, second) = head.split_at_mut(head.len() / 2);
        for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (a.mul_add(*cos, -(*b * sin)), b.mul_add(*cos, *a * sin));
        }
    }
}
