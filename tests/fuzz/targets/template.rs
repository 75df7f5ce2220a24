//! Chat templates: compiled, rendered, and contents found in what they render.

use proxytune::text::tokenizer::TokenizerConfig;
use proxytune::text::{ChatTemplate, Message};

/// `data` is the template.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tokens = TokenizerConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..TokenizerConfig::default() };
    let template = match ChatTemplate::compile("chat_template.jinja".into(), text, &tokens) {
        Ok(template) => template,
        Err(error) => return assert_eq!(error.exit_code(), 3, "{error:?}"),
    };
    let messages = [Message::new("system", " be <brief> "), Message::new("user", "a\u{f8f2}é")];
    match template.render(&messages, true) {
        Ok(text) => {
            let ranges = template.locate(&messages, true, &text).unwrap_or_default();
            for range in ranges {
                let content = &text[range];
                assert!(messages.iter().any(|message| message.content.contains(content)), "{content:?}");
            }
        }
        // 2 where the template itself refuses the chat.
        Err(error) => assert!(matches!(error.exit_code(), 2 | 3), "{error:?}"),
    }
}
