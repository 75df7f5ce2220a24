//! tokenizer.json and tokenizer_config.json: what loads can encode and decode.

use proxytune::checkpoint::Source;
use proxytune::text::Tokenizer;

/// Small files, because a vocabulary of 256 bytes would be all that a fuzzer changes.
const TOKENIZER: &[u8] = br#"{"added_tokens":[{"id":2,"content":"<e>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#;

/// `data` is a byte of form and a file: tokenizer.json of an even form, else tokenizer_config.json.
pub fn run(data: &[u8]) {
    let Some((form, text)) = data.split_first() else { return };
    let text = text.to_vec().into();
    let files = if form % 2 == 0 {
        [("tokenizer.json", text), ("tokenizer_config.json", b"{}".into())]
    } else {
        [("tokenizer.json", TOKENIZER.into()), ("tokenizer_config.json", text)]
    };
    match Tokenizer::open(&Source::memory("model", files)) {
        Ok(tokenizer) => use_all_of(&tokenizer),
        Err(error) => assert_eq!(error.exit_code(), 3, "{error:?}"),
    }
}

/// A text that no tokenizer can encode is an error too.
fn use_all_of(tokenizer: &Tokenizer) {
    let text = "ab<e> \u{e9}\u{301}\n\t12a'b  ";
    for ids in [
        tokenizer.encode_raw(text),
        tokenizer.encode_templated(text),
        tokenizer.encode_guarded(text, std::slice::from_ref(&(2..text.len()))),
    ] {
        match ids {
            Ok(ids) => drop(tokenizer.text_of(&ids)),
            Err(error) => assert!(matches!(error.exit_code(), 2 | 3), "{error:?}"),
        }
    }
    assert!((tokenizer.n_ids() as u32..).take(3).all(|id| tokenizer.bytes_of(id).is_none()));
}
