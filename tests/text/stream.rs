//! Bytes to text that is never taken back, against a plain search of the whole text.

use super::tokenizer;
use super::whole_text::whole_text;
use proxytune::text::{TextStream, Tokenizer};

fn streamed(chunks: &[&[u8]], stops: &[String]) -> (String, Option<usize>) {
    let mut stream = TextStream::new(stops.to_vec());
    let mut shown = String::new();
    chunks.iter().for_each(|chunk| shown += &stream.push(chunk));
    shown += &stream.finish();
    assert_eq!(stream.push(b"") + &stream.finish(), "", "nothing is left");
    (shown, stream.stopped_by())
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| text.to_string()).collect()
}

/// What each chunk sets free.
// rows 44, 45
#[test]
fn what_is_shown_when() {
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a [u8]], &'a [&'a str], Option<usize>);
    let cases: [Case; 17] = [
        ("plain", &[], &[b"ab", b"c"], &["ab", "c", ""], None),
        ("two bytes of one character", &[], &[b"\xC3", b"\xA9"], &["", "é", ""], None),
        ("four bytes, one by one", &[], &[b"\xF0", b"\x9F", b"\x98", b"\x80"], &["", "", "", "😀", ""], None),
        ("the end inside a character", &[], &[b"a\xE2\x82"], &["a", "\u{FFFD}"], None),
        ("a lone byte", &[], &[b"a\x80b"], &["a\u{FFFD}b", ""], None),
        ("a character broken by a letter", &[], &[b"\xE2\x82", b"a"], &["", "\u{FFFD}a", ""], None),
        ("overlong", &[], &[b"\xC0\xAF"], &["\u{FFFD}\u{FFFD}", ""], None),
        ("surrogate", &[], &[b"\xED\xA0\x80"], &["\u{FFFD}\u{FFFD}\u{FFFD}", ""], None),
        ("a stop in one token", &["x"], &[b"axb", b"c"], &["a", "", ""], Some(0)),
        ("a stop over three tokens", &["\n\nQ:"], &[b"yes\n", b"\nQ", b":no"], &["yes", "", "", ""], Some(0)),
        (
            "a beginning that leads nowhere",
            &["\n\nQ:"],
            &[b"yes\n", b"\nA", b":no"],
            &["yes", "\n\nA", ":no", ""],
            None,
        ),
        ("a beginning at the end", &["stop"], &[b"ast", b"o"], &["a", "", "sto"], None),
        ("a beginning inside a beginning", &["aab"], &[b"aa", b"ab"], &["", "a", ""], Some(0)),
        ("the first stop that is complete", &["bcd", "c"], &[b"abcd"], &["ab", ""], Some(1)),
        ("of two that end together the longer", &["c", "bc", "abc"], &[b"xabc"], &["x", ""], Some(2)),
        ("a stop inside the bytes of a character", &["é"], &[b"a\xC3", b"\xA9b"], &["a", "", ""], Some(0)),
        ("at the very start", &["a"], &[b"a"], &["", ""], Some(0)),
    ];
    for (label, stops, chunks, expected, stopped) in cases {
        let mut stream = TextStream::new(strings(stops));
        let mut shown: Vec<String> = chunks.iter().map(|chunk| stream.push(chunk)).collect();
        shown.push(stream.finish());
        assert_eq!((shown, stream.stopped_by()), (strings(expected), stopped), "{label}");
    }
}

#[test]
fn an_empty_stop_string_is_never_found() {
    assert_eq!(streamed(&[b"abc"], &strings(&[""])), ("abc".into(), None));
    assert_eq!(streamed(&[b"abc"], &strings(&["", "c"])), ("ab".into(), Some(1)));
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Few letters, so that stop strings and their beginnings come up; whole characters and halves of them.
const PIECES: &[&[u8]] = &[
    b"a",
    b"b",
    b"ab",
    b"aab",
    b"\n",
    " é".as_bytes(),
    "日".as_bytes(),
    b"\xE6",
    b"\x97\xA5",
    b"\xC3",
    b"\xA9",
    b"\xF0\x9F",
    b"\xFF",
    b"",
];

// rows 44, 45
#[test]
fn streaming_equals_the_whole_text_however_it_is_cut() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut n_stopped = 0;
    for round in 0..20_000 {
        let n = random.below(12);
        let bytes: Vec<u8> = (0..n).flat_map(|_| PIECES[random.below(PIECES.len())]).copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let n_stops = random.below(4);
        let stops: Vec<String> = (0..n_stops)
            .map(|_| {
                let chars: Vec<char> = text.chars().chain("ab\n".chars()).collect();
                (0..1 + random.below(3)).map(|_| chars[random.below(chars.len())]).collect()
            })
            .collect();
        let mut cuts: Vec<usize> = (0..random.below(6)).map(|_| random.below(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();

        let (whole, stopped) = whole_text(&bytes, &stops);
        let (shown, stopped_by) = streamed(&chunks, &stops);
        // Equal stop strings have two indices.
        let names = |index: Option<usize>| index.map(|index| &stops[index]);
        assert_eq!((shown, names(stopped_by)), (whole, names(stopped)), "round {round}: {chunks:?} {stops:?}");
        n_stopped += usize::from(stopped.is_some());
    }
    assert!((4_000..16_000).contains(&n_stopped), "{n_stopped} of 20,000 texts are stopped");
}

/// Texts whose characters the tokenizers here split over two to seven tokens, and letters that stop strings are made of.
const TEXTS: &[&str] = &[
    "é",
    " 日本語",
    "👩‍👩‍👧‍👦",
    "🇫🇷",
    "a\u{301}",
    "the",
    " sister",
    "\n\nQ:",
    "\u{FFFD}",
    "aab",
    "</s>",
    "<|im_end|>",
    "▁",
    "\0",
];

/// Ids of a response: texts, whole or cut anywhere, and ids by chance, among them halves of characters.
fn random_ids(random: &mut Random, tokenizer: &Tokenizer, texts: &[Vec<u32>]) -> Vec<u32> {
    let mut ids = Vec::new();
    for _ in 0..random.below(6) {
        let text = &texts[random.below(texts.len())];
        match random.below(8) {
            0 => ids.push(random.below(tokenizer.n_ids()) as u32),
            1 => ids.extend(&text[random.below(text.len())..]),
            2 => ids.extend(&text[..random.below(text.len())]),
            _ => ids.extend(text),
        }
    }
    ids
}

/// Up to three pieces of the text, or of another.
fn random_stops(random: &mut Random, text: &str) -> Vec<String> {
    let n = random.below(4);
    let piece = |random: &mut Random| {
        let text = if random.below(4) == 0 { TEXTS[random.below(TEXTS.len())] } else { text };
        let mut bounds = [0, 0].map(|_| random.below(text.len() + 1));
        bounds.sort_unstable();
        text.chars().skip(bounds[0] / 2).take(1 + (bounds[1] - bounds[0]) / 3).collect::<String>()
    };
    (0..n).map(|_| piece(random)).collect()
}

/// A stream of tokens shows, byte for byte, what the whole response decodes to, up to the first stop string.
// rows 44, 45
#[test]
fn a_million_responses_stream_as_they_decode() {
    let mut random = Random(44);
    let (mut n_stopped, mut n_replaced, mut n_split) = (0, 0, 0);
    for name in ["qwen2", "llama2"] {
        let tokenizer = tokenizer(name);
        let encode = |text: &&str| tokenizer.encode_templated(text).expect("a short text");
        let texts: Vec<Vec<u32>> = TEXTS.iter().map(encode).collect();
        for round in 0..500_000 {
            let ids = random_ids(&mut random, &tokenizer, &texts);
            let decoded = tokenizer.text_of(&ids);
            let stops = random_stops(&mut random, &decoded);
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.shown_bytes(id)).copied().collect();
            let (whole, stopped) = whole_text(&bytes, &stops);
            assert!(decoded.starts_with(&whole), "{name}, round {round}: {ids:?} {stops:?}");
            let chunks: Vec<&[u8]> = ids.iter().map(|&id| tokenizer.shown_bytes(id)).collect();
            let (shown, stopped_by) = streamed(&chunks, &stops);
            let names = |index: Option<usize>| index.map(|index| &stops[index]);
            assert_eq!(
                (&shown, names(stopped_by)),
                (&whole, names(stopped)),
                "{name}, round {round}: {ids:?} {stops:?}"
            );
            n_stopped += usize::from(stopped.is_some());
            n_replaced += usize::from(std::str::from_utf8(&bytes).is_err());
            n_split += usize::from(chunks.iter().any(|chunk| std::str::from_utf8(chunk).is_err()));
        }
    }
    // Each kind of response comes up often.
    for n in [n_stopped, n_replaced, n_split] {
        assert!((100_000..900_000).contains(&n), "{n_stopped} stopped, {n_replaced} invalid, {n_split} split");
    }
}

/// Only what may begin a stop string is held back: never more than the longest one less a character.
// row 45
#[test]
fn nothing_is_held_longer_than_it_must() {
    let mut random = Random(7);
    for _ in 0..2_000 {
        let text: String = (0..40).map(|_| ["a", "b", "é"][random.below(3)]).collect();
        let stops = strings(&["aabx", "béay"]);
        let mut stream = TextStream::new(stops.clone());
        let mut shown = String::new();
        for (at, c) in text.char_indices() {
            shown += &stream.push(c.to_string().as_bytes());
            let so_far = &text[..at + c.len_utf8()];
            let held = &so_far[shown.len()..];
            assert!(so_far.starts_with(&shown));
            assert!(
                held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)),
                "{held:?} is held of {so_far:?}"
            );
        }
    }
}
