//! What a stream of text must come to, by a plain search of the whole text.

/// What the text of `bytes` is up to the stop string that is complete first (of those, the one that begins first), and
/// which it was.
pub(crate) fn whole_text(bytes: &[u8], stops: &[String]) -> (String, Option<usize>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let found = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
    // The first occurrence is also the one that ends first.
    let found =
        found.filter_map(|(index, stop)| text.find(stop.as_str()).map(|start| (start + stop.len(), start, index)));
    match found.min() {
        Some((_, start, index)) => (text[..start].to_string(), Some(index)),
        None => (text, None),
    }
}
