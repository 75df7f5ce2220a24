//! Weights that are not numbers, found by their bits as they pass: a whole exponent of ones is NaN or an infinity.

use crate::backend::Dtype;

/// Index of the first element of little-endian `bytes` that is not finite.
pub(super) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F32 => first_with::<4>(bytes, |b| u32::from_le_bytes(b) & 0x7F80_0000 == 0x7F80_0000),
        Dtype::F16 => first_with::<2>(bytes, |b| u16::from_le_bytes(b) & 0x7C00 == 0x7C00),
        Dtype::Bf16 => first_with::<2>(bytes, |b| u16::from_le_bytes(b) & 0x7F80 == 0x7F80),
    }
}

/// Whole blocks are tested without a branch, which compiles to wide compares; only a block that has one is searched.
fn first_with<const N: usize>(bytes: &[u8], is_wrong: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 4_096;
    let element = |bytes: &[u8]| -> [u8; N] { bytes.try_into().expect("a whole element") };
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.chunks_exact(N).fold(false, |any, bytes| any | is_wrong(element(bytes))) {
            let within = block.chunks_exact(N).position(|bytes| is_wrong(element(bytes)));
            return within.map(|within| index * BLOCK / N + within);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_kind_is_found_where_it_stands_and_nothing_else_is() {
        let finite = [0.0f32, -0.0, 1.5, f32::MIN_POSITIVE / 2.0];
        let wrong = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xFF80_0001)];
        let f32s = |x: f32| x.to_le_bytes().to_vec();
        let f16s = |x: f32| f16::from_f32(x).to_le_bytes().to_vec();
        let bf16s = |x: f32| bf16::from_f32(x).to_le_bytes().to_vec();
        type ToBytes<'a> = &'a dyn Fn(f32) -> Vec<u8>;
        let kinds: [(Dtype, ToBytes, Vec<u8>); 3] = [
            (Dtype::F32, &f32s, f32s(f32::MAX)),
            (Dtype::F16, &f16s, f16::MAX.to_le_bytes().to_vec()),
            (Dtype::Bf16, &bf16s, bf16::MAX.to_le_bytes().to_vec()),
        ];
        for (dtype, bytes_of, largest) in kinds {
            // More than a block, and no whole number of them.
            let mut bytes: Vec<u8> = (0..3_001).flat_map(|i| bytes_of(finite[i % finite.len()])).collect();
            bytes.extend(largest);
            assert_eq!(first_non_finite(dtype, &bytes), None);
            for (place, x) in [0, 1, 2_047, 2_048, 3_001].into_iter().zip(wrong.iter().cycle()) {
                let mut bytes = bytes.clone();
                bytes[place * dtype.bytes()..][..dtype.bytes()].copy_from_slice(&bytes_of(*x));
                assert_eq!(first_non_finite(dtype, &bytes), Some(place), "{x} of {dtype:?}");
            }
        }
    }
}
