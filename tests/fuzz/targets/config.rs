//! config.json and generation_config.json.

use super::{memory, model};
use proxytune::checkpoint::Checkpoint;

/// `data` is a byte of form and a file: config.json of an even form, else generation_config.json.
pub fn run(data: &[u8]) {
    let Some((form, text)) = data.split_first() else { return };
    let file = if form % 2 == 0 { "config.json" } else { "generation_config.json" };
    match Checkpoint::open(memory::llama_with([(file, text.to_vec().into())])) {
        Ok(Checkpoint { config, .. }) => {
            // The weights are the tiny Llama's, so these are its sizes; what else is accepted must still be sound.
            assert_eq!((config.n_layers, config.n_vocab, config.d_model), (1, model::N_VOCAB, model::D_MODEL));
            assert_eq!(config.group_size() * config.n_kv_heads, config.n_heads);
            assert!(config.norm_eps > 0.0 && config.norm_eps < 1.0);
            assert_eq!(config.layers.len(), config.n_layers);
            for rope in config.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
                let frequencies = rope.inverse_frequencies(config.head_dim);
                assert!(frequencies.iter().all(|&x| x.is_finite() && x >= 0.0), "{frequencies:?}");
            }
        }
        Err(error) => assert_eq!(error.exit_code(), 3, "{error:?}"),
    }
}
