//! The twin of `shaders/rope_append.wgsl`.

use super::rows::InverseRms;
use super::simd::Kernel;
use super::*;
use crate::backend::math::ln;
use half::{bf16, f16};

/// See [`RopeAppend`].
pub(super) fn run(cpu: &Cpu, op: RopeAppend<'_, Cpu>) {
    match op.params.page.dtype {
        d if d == Dtype::F32 as u32 => append(cpu, op, |x| x),
        d if d == Dtype::F16 as u32 => append(cpu, op, f16::from_f32),
        _ => append(cpu, op, nearest_bf16),
    }
}

fn append<T: Pod>(cpu: &Cpu, op: RopeAppend<'_, Cpu>, round: impl Fn(f32) -> T + Copy) {
    let RopeAppendParams { page, cap, n_heads, n_kv_heads, head_dim, max_positions, wide_norm, eps, q_beta, q_length } =
        op.params;
    let [cap, n_heads, n_kv_heads, head_dim] = [cap, n_heads, n_kv_heads, head_dim].map(|n| n as usize);
    let [q_width, kv_width] = [n_heads, n_kv_heads].map(|n| n * head_dim);
    let width = q_width + 2 * kv_width;
    // What one norm spans.
    let [q_span, k_span] = if wide_norm == 1 { [q_width, kv_width] } else { [head_dim; 2] };
    let (places, table) = (op.places.view::<Place>(), op.page_table.view::<u32>());
    let rotary = op.rotary.map(|rotary| rotary.view::<[f32; 2]>());
    let [q_gain, k_gain] = [op.q_gain, op.k_gain].map(|gain| gain.map(|gain| gain.view::<f32>()));
    let (mut qkv, mut plane) = (op.qkv.view_mut::<f32>(), op.plane.view_mut::<T>());
    let mut keys = vec![0.0; kv_width];
    // A member without rows may have no gains either.
    for (member, n_rows) in rows::n_rows(op.extents).into_iter().enumerate().filter(|&(_, n_rows)| n_rows > 0) {
        let gain = |gain: &Option<Ref<[f32]>>, span| gain.as_ref().map(|gain| gain[member * span..][..span].to_vec());
        let (q_gain, k_gain) = (gain(&q_gain, q_span), gain(&k_gain, k_span));
        for index in (member * cap..member * cap + n_rows).filter(|&index| places[index].live == 1) {
            let Place { table: first, position, .. } = places[index];
            assert!(position < max_positions, "a position has its row of the rotary table");
            let first_angle = (member * max_positions as usize + position as usize) * (head_dim / 2);
            let angles = rotary.as_ref().map(|rotary| &rotary[first_angle..][..head_dim / 2]);
            let eps = eps[member];
            let (heads, kv) = qkv[index * width..][..width].split_at_mut(q_width);
            let (k, v) = kv.split_at(kv_width);
            let q_factor = match q_beta[member] {
                0.0 => 1.0,
                beta => beta.mul_add(ln(1.0 + (position / q_length[member]) as f32), 1.0),
            };
            cpu.isa.run(Turn { heads, head_dim, gain: q_gain.as_deref(), eps, angles, factor: q_factor });
            keys.copy_from_slice(k);
            let heads = &mut keys[..];
            cpu.isa.run(Turn { heads, head_dim, gain: k_gain.as_deref(), eps, angles, factor: 1.0 });
            let page_id = table[(first + position / page.page_tokens) as usize] as usize;
            let cells = Cells::new(&page, page_id, n_kv_heads, head_dim, size_of::<T>());
            for (head, (k, v)) in keys.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                let token = position % page.page_tokens;
                for (at, from) in [(cells.key(head, token), k), (cells.value(head, token), v)] {
                    cpu.isa.run(Round { from, to: &mut plane[at..at + head_dim], round });
                }
            }
        }
    }
}

/// The nearest bf16, ties to even, as `bf16::from_f32` gives it but without a branch: lanes can be vectors.
#[inline(always)]
fn nearest_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet_nan } else { nearest } as u16)
}

/// Keys or values of a head to their cells.
struct Round<'a, T, F> {
    from: &'a [f32],
    to: &'a mut [T],
    round: F,
}

impl<T, F: Fn(f32) -> T> Kernel for Round<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Round { from, to, round } = self;
        to.iter_mut().zip(from).for_each(|(to, from)| *to = round(*from));
    }
}

/// Norm where there is a gain, over as many elements as the gain has; then the rotation of each pair (i, i + half) of a
/// head, and a factor.
struct Turn<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    gain: Option<&'a [f32]>,
    eps: f32,
    angles: Option<&'a [[f32; 2]]>,
    factor: f32,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Turn { heads, head_dim, gain, eps, angles, factor } = self;
        if let Some(gain) = gain {
            for span in heads.chunks_exact_mut(gain.len()) {
                let norm = InverseRms { x: span, eps }.run();
                span.iter_mut().zip(gain).for_each(|(x, gain)| *x = norm * *x * gain);
            }
        }
        if let Some(angles) = angles {
            for head in heads.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (a.mul_add(*cos, -(*b * sin)), b.mul_add(*cos, *a * sin));
                }
            }
        }
        if factor != 1.0 {
            heads.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bf16_is_the_nearest() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(nearest_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{:#x}", x.to_bits());
            }
        }
    }
}
