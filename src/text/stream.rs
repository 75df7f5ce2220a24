//! Bytes of generated tokens to text that can be shown: whole characters, and nothing that a stop string may still take back.
//!
//! Last station of the walk. However the bytes are cut into tokens, the concatenation of what is shown is the same: the text
//! of all bytes (invalid ones become U+FFFD as in [`String::from_utf8_lossy`]) up to the stop string that is complete first.
//! Of two that end at the same character, the one that begins first is cut.

/// The text of one response on its way out.
#[derive(Debug, Clone)]
pub struct TextStream {
    stops: Vec<String>,
    /// Bytes of a character that is not complete.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: Option<usize>,
}

impl TextStream {
    /// A stream that ends before any of `stops`; empty ones are never found.
    pub fn new(stops: Vec<String>) -> Self {
        TextStream { stops, partial: Vec::new(), held: String::new(), stopped: None }
    }

    /// Takes the bytes of one token and gives the text that is now certain. After a stop string it gives nothing.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let text = take_complete(&mut self.partial);
        self.take(&text)
    }

    /// Ends the response: what was held back, unless a stop string ended it before.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.partial);
        let mut text = self.take(&String::from_utf8_lossy(&rest));
        if self.stopped.is_none() {
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    /// The index of the stop string that ended the text.
    pub fn stopped_by(&self) -> Option<usize> {
        self.stopped
    }

    /// Character by character, so that the result cannot depend on how the text was cut.
    fn take(&mut self, text: &str) -> String {
        if self.stops.is_empty() {
            return text.to_string();
        }
        let mut shown = String::new();
        for c in text.chars() {
            if self.stopped.is_some() {
                break;
            }
            self.held.push(c);
            if let Some(index) = self.complete_stop() {
                self.held.truncate(self.held.len() - self.stops[index].len());
                shown.push_str(&std::mem::take(&mut self.held));
                self.stopped = Some(index);
            } else {
                let certain = self.certain_len();
                shown.extend(self.held.drain(..certain));
            }
        }
        shown
    }

    /// The longest stop string that the held text ends with.
    fn complete_stop(&self) -> Option<usize> {
        let ends = |stop: &String| !stop.is_empty() && self.held.ends_with(stop.as_str());
        (0..self.stops.len()).filter(|&i| ends(&self.stops[i])).max_by_key(|&i| (self.stops[i].len(), usize::MAX - i))
    }

    /// Length of the held text before its longest end that begins a stop string.
    fn certain_len(&self) -> usize {
        let begins = |end: &str| self.stops.iter().any(|stop| stop.starts_with(end));
        let starts = self.held.char_indices().map(|(at, _)| at);
        starts.into_iter().find(|&at| begins(&self.held[at..])).unwrap_or(self.held.len())
    }
}

/// Takes all but an incomplete last character, with invalid bytes replaced.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                done = bytes.len();
                break;
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[done..valid]).expect("checked by from_utf8"));
                done = valid;
                let Some(n_invalid) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                done += n_invalid;
            }
        }
    }
    bytes.drain(..done);
    text
}
