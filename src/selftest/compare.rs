//! The one comparator: what each element of an output must be, and how far it is from that.

use crate::backend::Dtype;
use half::{bf16, f16};

/// What one element of an output must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// The contract does not say.
    Any,
    /// These bits: an integer, an exact number, or memory that the op must leave alone.
    Bits(u32),
    /// A finite number within `tolerance` (absolute) of `value`.
    Near {
        /// By arithmetic in f64, or from a golden file.
        value: f64,
        /// Largest error allowed.
        tolerance: f64,
    },
    /// The bits of the twin's element; without a twin, anything.
    Twin,
}

/// One output buffer after an op: the bits of each element, 16-bit ones in the low half.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name of the buffer, for messages.
    pub name: &'static str,
    /// Type of the elements that are numbers.
    pub dtype: Dtype,
    /// One entry per element.
    pub bits: Vec<u32>,
}

impl Output {
    /// 32-bit elements, numbers and integers alike.
    pub fn words(name: &'static str, bits: Vec<u32>) -> Self {
        Self { name, dtype: Dtype::F32, bits }
    }

    /// Words of a buffer that holds elements of `dtype`, two in a word where they have 16 bits.
    pub fn packed(name: &'static str, dtype: Dtype, words: Vec<u32>) -> Self {
        let bits = match dtype {
            Dtype::F32 => words,
            Dtype::F16 | Dtype::Bf16 => words.into_iter().flat_map(|word| [word & 0xffff, word >> 16]).collect(),
        };
        Self { name, dtype, bits }
    }

    /// Element `index` as a number.
    pub fn value(&self, index: usize) -> f64 {
        let bits = self.bits[index];
        match self.dtype {
            Dtype::F32 => f32::from_bits(bits).into(),
            Dtype::F16 => f16::from_bits(bits as u16).into(),
            Dtype::Bf16 => bf16::from_bits(bits as u16).into(),
        }
    }
}

/// `max |difference| / max |expected|` of a row; infinite where the lengths differ or a number is not finite. The
/// maximum is the expected row's, so that a wrong element cannot make its own error small.
pub fn row_error(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() || got.iter().chain(expected).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let differences = got.iter().zip(expected).map(|(got, expected)| f64::from(*got) - f64::from(*expected));
    match largest(differences) {
        0.0 => 0.0,
        difference => difference / largest(expected.iter().map(|&x| x.into())),
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |largest, x| x.abs().max(largest))
}

/// Compares an output with what it must be, and with the twin's (both are within the tolerance of one value, so they
/// differ by twice that at most). Returns the largest error as a share of its tolerance, or says what is wrong.
pub fn compare(want: &[Want], got: &Output, twin: Option<&Output>) -> Result<f64, String> {
    check_length(got, want.len())?;
    if let Some(twin) = twin {
        check_length(twin, want.len())?;
    }
    let mut worst = 0.0f64;
    for (index, want) in want.iter().enumerate() {
        let share = match *want {
            Want::Any => 0.0,
            Want::Bits(bits) => share_of_bits(got.bits[index], bits),
            Want::Twin => twin.map_or(0.0, |twin| share_of_bits(got.bits[index], twin.bits[index])),
            Want::Near { value, tolerance } => {
                let to_twin = twin.map_or(0.0, |twin| (got.value(index) - twin.value(index)).abs() / 2.0);
                share_of(tolerance, (got.value(index) - value).abs()).max(share_of(tolerance, to_twin))
            }
        };
        if share.is_infinite() {
            return Err(difference(index, want, got, twin));
        }
        worst = worst.max(share);
    }
    Ok(worst)
}

/// Compares bit for bit what the contract speaks of.
pub fn same_bits(want: &[Want], got: &Output, twin: &Output) -> Result<f64, String> {
    let bits = |want: &Want| if *want == Want::Any { Want::Any } else { Want::Twin };
    compare(&want.iter().map(bits).collect::<Vec<_>>(), got, Some(twin))
}

fn check_length(output: &Output, n: usize) -> Result<(), String> {
    let found = output.bits.len();
    if found == n { Ok(()) } else { Err(format!("{} has {found} elements, {n} are wanted", output.name)) }
}

/// An error as a share of its tolerance; infinite where it is larger, or no number. A row of zeros has no tolerance.
fn share_of(tolerance: f64, error: f64) -> f64 {
    match error {
        0.0 => 0.0,
        _ if error.is_finite() && error <= tolerance => error / tolerance,
        _ => f64::INFINITY,
    }
}

fn share_of_bits(got: u32, want: u32) -> f64 {
    if got == want { 0.0 } else { f64::INFINITY }
}

fn difference(index: usize, want: &Want, got: &Output, twin: Option<&Output>) -> String {
    let element = |output: &Output| format!("{:e} ({:#x})", output.value(index), output.bits[index]);
    let twin = twin.map_or(String::new(), |twin| format!(", twin {}", element(twin)));
    format!("{}[{index}] is {}, wanted {want:x?}{twin}", got.name, element(got))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 6] = [1.0, -2.0, 0.5, 100.0, 0.001, 7.0];

    fn output(values: &[f32]) -> Output {
        Output::words("y", values.iter().map(|x| x.to_bits()).collect())
    }

    const BOUND: f64 = 1e-4;

    /// Rows of three through [`compare`], each element within a share of its row's largest.
    fn against(expected: &[f32], got: &[f32]) -> Result<f64, String> {
        let near = |row: &[f32]| {
            let tolerance = BOUND * largest(row.iter().map(|&x| x.into()));
            row.iter().map(|&x| Want::Near { value: x.into(), tolerance }).collect::<Vec<_>>()
        };
        compare(&expected.chunks(3).flat_map(near).collect::<Vec<_>>(), &output(got), None)
    }

    /// The same through [`row_error`].
    fn passes_by_row(expected: &[f32], got: &[f32]) -> bool {
        let rows = expected.chunks(3).zip(got.chunks(3));
        expected.len().div_ceil(3) == got.len().div_ceil(3) && rows.into_iter().all(|(e, g)| row_error(g, e) <= BOUND)
    }

    fn with(index: usize, value: f32) -> [f32; 6] {
        let mut rows = ROWS;
        rows[index] = value;
        rows
    }

    #[test]
    fn equal_and_nearly_equal_rows_pass_with_their_share() {
        assert_eq!(against(&ROWS, &ROWS), Ok(0.0));
        assert!(passes_by_row(&ROWS, &ROWS) && passes_by_row(&ROWS, &with(0, 1.0001)));
        assert_eq!(row_error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        // The first row's largest is 2, the second's 100: the tolerances are 2e-4 and 1e-2.
        let share = against(&ROWS, &with(0, 1.0001)).expect("half the tolerance");
        assert!((share - 0.5).abs() < 1e-3, "{share}");
        let share = against(&ROWS, &with(4, 0.006)).expect("half the tolerance");
        assert!((share - 0.5).abs() < 1e-3, "{share}");
    }

    #[test]
    fn every_kind_of_damage_fails() {
        let flipped = |index: usize| with(index, -ROWS[index]);
        let swapped = [ROWS[3], ROWS[4], ROWS[5], ROWS[0], ROWS[1], ROWS[2]];
        let table: &[(&str, &[f32])] = &[
            ("a flipped element", &flipped(2)),
            ("a flipped element of a loud row", &flipped(5)),
            ("just over the tolerance", &with(1, -2.000_21)),
            ("NaN", &with(0, f32::NAN)),
            ("infinity", &with(3, f32::INFINITY)),
            ("swapped sides", &swapped),
            ("too short", &ROWS[..5]),
            ("too long", &[ROWS.as_slice(), &[0.0]].concat()),
            ("an element that would widen its own tolerance", &with(0, 1e30)),
        ];
        for (name, got) in table {
            assert!(against(&ROWS, got).is_err(), "{name} passes");
            assert!(against(got, &ROWS).is_err(), "{name} passes on the expected side");
            assert!(!passes_by_row(&ROWS, got), "{name} passes by row");
            assert!(!passes_by_row(got, &ROWS), "{name} passes by row on the expected side");
        }
        assert!(against(&with(0, f32::NAN), &with(0, f32::NAN)).is_err(), "NaN on both sides passes");
        assert!(against(&with(0, f32::INFINITY), &with(0, f32::INFINITY)).is_err(), "infinity on both sides passes");
    }

    #[test]
    fn bits_and_twins_are_exact() {
        let (got, negative) = (output(&[0.0]), output(&[-0.0]));
        assert_eq!(compare(&[Want::Bits(0)], &got, None), Ok(0.0));
        assert!(compare(&[Want::Bits(0)], &negative, None).is_err());
        assert!(compare(&[Want::Twin], &got, Some(&negative)).is_err());
        assert_eq!(compare(&[Want::Any], &got, Some(&negative)), Ok(0.0));
        let near = [Want::Near { value: 0.0, tolerance: 1e-3 }];
        assert!(same_bits(&near, &got, &negative).is_err());
        assert_eq!(compare(&near, &got, Some(&negative)), Ok(0.0));
        assert!(compare(&near, &got, Some(&output(&[0.0, 0.0]))).is_err(), "a twin of another length passes");
        assert!(compare(&near, &got, Some(&output(&[f32::NAN]))).is_err(), "a NaN of the twin passes");
    }

    #[test]
    fn halves_of_a_word_are_elements() {
        let word = u32::from(f16::from_f32(1.5).to_bits()) | u32::from(f16::from_f32(-2.0).to_bits()) << 16;
        let output = Output::packed("plane", Dtype::F16, vec![word]);
        assert_eq!([output.value(0), output.value(1)], [1.5, -2.0]);
    }
}
