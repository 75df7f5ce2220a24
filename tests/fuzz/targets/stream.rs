//! Bytes of tokens to text, cut anywhere, with stop strings: what is shown piece by piece is the whole text up to the first stop.

use super::whole_text::whole_text;
use proxytune::text::TextStream;

/// `data` is a byte of form, up to three stop strings that end in a zero byte, and tokens that end in a zero byte.
pub fn run(data: &[u8]) {
    let Some((form, rest)) = data.split_first() else { return };
    let mut pieces = rest.split(|&byte| byte == 0);
    let stops = pieces.by_ref().take(usize::from(form % 4)).map(|stop| String::from_utf8_lossy(stop).into_owned());
    let stops: Vec<String> = stops.collect();
    let tokens: Vec<&[u8]> = pieces.collect();
    let mut stream = TextStream::new(stops.clone());
    let mut shown: String = tokens.iter().map(|token| stream.push(token)).collect();
    shown += &stream.finish();
    let (whole, stopped) = whole_text(&tokens.concat(), &stops);
    assert_eq!(shown, whole);
    assert_eq!(stream.stopped_by().map(|index| &stops[index]), stopped.map(|index| &stops[index]));
}
