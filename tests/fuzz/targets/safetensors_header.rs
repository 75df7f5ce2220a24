//! The length and header of a safetensors file: a checkpoint opens, and then its tensors are what the header says; or an error.

use super::{memory, model};
use proxytune::checkpoint::Checkpoint;
use std::sync::LazyLock;

/// As many bytes as the tiny Llama's weights have.
static ZEROS: LazyLock<Vec<u8>> =
    LazyLock::new(|| vec![0; model::tensors(false).iter().map(|tensor| tensor.bytes.len()).sum()]);

/// `data` is a byte of form and a header. Of an even form the length before the header is right, else it is part of `data`;
/// the form's next two bits say how much data there is: enough for f32, for 16-bit types, little, none.
pub fn run(data: &[u8]) {
    let Some((form, header)) = data.split_first() else { return };
    let n_data = [ZEROS.len(), ZEROS.len() / 2, 4, 0][usize::from(form / 2 % 4)];
    let zeros = &ZEROS[..n_data];
    let file = if form % 2 == 0 { model::framed(header, zeros) } else { [header, zeros].concat() };
    match Checkpoint::open(memory::llama_with([("model.safetensors", file.into())])) {
        Ok(checkpoint) => {
            for (name, info) in checkpoint.tensors() {
                let n_elements: usize = info.shape.iter().product();
                assert_eq!(checkpoint.read(name).expect("it was checked").len(), info.n_bytes);
                assert_eq!(checkpoint.read_f32(name).expect("it was checked").len(), n_elements);
            }
        }
        Err(error) => assert_eq!(error.exit_code(), 3, "{error:?}"),
    }
}
