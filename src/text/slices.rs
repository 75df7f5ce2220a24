//! Slices of a template (`messages[1:]`), taken at once.
//!
//! The template machine keeps a slice of a list as a view, and counts the items of a view by going through the views below
//! it: a loop that slices what it sliced before nests them without end, for a few steps each. So `x[a:b:c]` is written as a
//! call of the method [`METHOD`] before the machine sees it, and that makes a list or a string, paid for by all that it is
//! taken from.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Name of the method that stands for a slice.
pub(super) const METHOD: &str = "__slice__";
/// Bytes of a string for one step, as the machine itself counts.
const BYTES_PER_STEP: usize = 64;

/// An open bracket.
struct Bracket {
    is_square: bool,
    /// Where it stands in the text that is written.
    at: usize,
    /// Whether a colon was found directly inside it, so that it is a slice.
    slices: bool,
    /// Whether nothing stands after the bracket or its last colon.
    is_empty: bool,
}

/// `text` with each slice in its code as a call. Text, comments and raw blocks stay as they are; what is no template
/// stays wrong.
pub(super) fn as_calls(text: &str) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = next_start(rest) {
        let marker = rest.as_bytes()[start + 1];
        let n_sign = usize::from(matches!(rest.as_bytes().get(start + 2), Some(b'-' | b'+')));
        let inside = start + 2 + n_sign;
        let end = match marker {
            b'#' => rest[inside..].find("#}").map_or(rest.len(), |n| inside + n + 2),
            b'%' if tag(&rest[inside..], "raw").is_some() => inside + end_of_raw(&rest[inside..]),
            _ => inside,
        };
        done.push_str(&rest[..end]);
        let is_code = end == inside;
        let end =
            if is_code { end + code(&rest[end..], if marker == b'%' { "%}" } else { "}}" }, &mut done) } else { end };
        rest = &rest[end..];
    }
    done.push_str(rest);
    done
}

/// Where the next `{{`, `{%` or `{#` is.
fn next_start(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The length of what stands inside `{%`, with its end, where it is `name` alone.
fn tag(inside: &str, name: &str) -> Option<usize> {
    let blank = |c: char| c.is_ascii_whitespace();
    let rest = inside.trim_start_matches(blank).strip_prefix(name)?.trim_start_matches(blank);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some(inside.len() - rest.len())
}

/// The length of a raw block whose tag `inside` begins with.
fn end_of_raw(inside: &str) -> usize {
    for (at, _) in inside.match_indices("{%") {
        let tag_at = at + 2 + usize::from(inside[at + 2..].starts_with(['-', '+']));
        if let Some(n) = tag(&inside[tag_at..], "endraw") {
            return tag_at + n;
        }
    }
    inside.len()
}

/// Appends the code up to `end` to `done`, slices as calls; gives its length with the end.
fn code(text: &str, end: &str, done: &mut String) -> usize {
    let mut open: Vec<Bracket> = Vec::new();
    // As the template machine counts: a bracket of any kind closes one of any kind, and too many are below zero.
    let mut depth = 0isize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if depth == 0 && text[at..].strip_prefix(['-', '+']).unwrap_or(&text[at..]).starts_with(end) {
            let n = text[at..].find(end).expect("it was just found") + end.len();
            done.push_str(&text[at..at + n]);
            return at + n;
        }
        let n = if matches!(c, '\'' | '"') { string(&text[at..]) } else { c.len_utf8() };
        let slices = open.last().is_some_and(|bracket| bracket.is_square);
        match c {
            '(' | '[' | '{' => {
                open.iter_mut().last().into_iter().for_each(|bracket| bracket.is_empty = false);
                open.push(Bracket { is_square: c == '[', at: done.len(), slices: false, is_empty: true });
                done.push(c);
                depth += 1;
            }
            ')' | ']' | '}' => {
                depth -= 1;
                match open.pop() {
                    Some(bracket) if bracket.slices => {
                        done.push_str(if bracket.is_empty { "none)" } else { ")" });
                        done.replace_range(bracket.at..=bracket.at, &format!(".{METHOD}("));
                    }
                    _ => done.push(c),
                }
            }
            ':' if slices => {
                let bracket = open.last_mut().expect("it is square");
                done.push_str(if bracket.is_empty { "none," } else { "," });
                (bracket.slices, bracket.is_empty) = (true, true);
            }
            _ => {
                if let Some(bracket) = open.last_mut().filter(|_| !c.is_whitespace()) {
                    bracket.is_empty = false;
                }
                done.push_str(&text[at..at + n]);
            }
        }
        at += n;
    }
    text.len()
}

/// The length of the string that `text` begins with.
fn string(text: &str) -> usize {
    let quote = text.as_bytes()[0];
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == quote && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |n| n + 2)
}

/// `value[start:stop:step]` as in Python, of a string or a list.
pub(super) fn slice(state: &State, value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let refuse = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    if bounds.len() > 3 {
        return Err(refuse("a slice has at most three parts".into()));
    }
    let bound = |i: usize| match bounds.get(i) {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        Some(value) => i64::try_from(value.clone()).map(Some),
    };
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    if step == 0 {
        return Err(refuse("cannot slice by step size of 0".into()));
    }
    if let Some(text) = value.as_str() {
        state.consume_fuel(text.len().div_ceil(BYTES_PER_STEP) as u64)?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(indices(chars.len(), start, stop, step).map(|i| chars[i]).collect::<String>().into());
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(refuse(format!("value of type {} cannot be sliced", value.kind())));
    }
    let items = items(state, value)?;
    Ok(indices(items.len(), start, stop, step).map(|i| items[i].clone()).collect::<Vec<_>>().into())
}

/// The items of a list, a step each.
pub(super) fn items(state: &State, list: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in list.try_iter()? {
        state.consume_fuel(1)?;
        items.push(item);
    }
    Ok(items)
}

/// The places that a slice of `n` items takes, in order.
fn indices(n: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let n = n as i64;
    // Downwards the ends are one place lower: -1 is before the first.
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let place = |bound: Option<i64>, absent: i64| match bound {
        None => absent,
        Some(i) if i < 0 => i.saturating_add(n).max(low),
        Some(i) => i.min(high),
    };
    let (start, stop) =
        if step > 0 { (place(start, low), place(stop, high)) } else { (place(start, high), place(stop, low)) };
    let ends = move |&i: &i64| if step > 0 { i < stop } else { i > stop };
    std::iter::successors(Some(start), move |&i| i.checked_add(step)).take_while(ends).map(|i| i as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_calls_and_nothing_else_changes() {
        for (text, expected) in [
            ("{{ a[1:] }}", "{{ a.__slice__(1,none) }}"),
            ("{{ a[:] }}{{a[::-1]}}", "{{ a.__slice__(none,none) }}{{a.__slice__(none,none,-1)}}"),
            ("{% set b = a[ 1 : 2 ][0] %}", "{% set b = a.__slice__( 1 , 2 )[0] %}"),
            ("{{ a[b[:1]:c[0]] }}", "{{ a.__slice__(b.__slice__(none,1),c[0]) }}"),
            ("{{ {'a': [1, 2]}['a'][({1: 2}[1]):] }}", "{{ {'a': [1, 2]}['a'].__slice__(({1: 2}[1]),none) }}"),
            ("{{ a[':'] ~ \"[1:]\" ~ '\\'[1:]' }}[1:]", "{{ a[':'] ~ \"[1:]\" ~ '\\'[1:]' }}[1:]"),
            ("{# a[1:] #}{%- raw -%}{{ a[1:] }}{%- endraw %}", "{# a[1:] #}{%- raw -%}{{ a[1:] }}{%- endraw %}"),
            (
                "{# ' #}{{ a[1:] }}{% raw %}'{% endraw %}{{ a[1:] }}",
                "{# ' #}{{ a.__slice__(1,none) }}{% raw %}'{% endraw %}{{ a.__slice__(1,none) }}",
            ),
            ("{%- if a[1:] -%}{{- a[-1:] -}}", "{%- if a.__slice__(1,none) -%}{{- a.__slice__(-1,none) -}}"),
            ("{{ {'a': {'b': 1}} }}{{ a[1:] }}", "{{ {'a': {'b': 1}} }}{{ a.__slice__(1,none) }}"),
            ("{{ 'é'[1:] }}", "{{ 'é'.__slice__(1,none) }}"),
            ("{{ a[", "{{ a["),
            ("{{ 'a", "{{ 'a"),
            ("{% raw %}{{ a[1:]", "{% raw %}{{ a[1:]"),
            ("a { b {", "a { b {"),
        ] {
            assert_eq!(as_calls(text), expected);
        }
    }

    /// Against Python's `list(range(n))[start:stop:step]`, by its own rule: the places between, by steps, that exist.
    #[test]
    fn places_are_pythons() {
        let bounds =
            [None, Some(-9), Some(-3), Some(-1), Some(0), Some(1), Some(3), Some(9), Some(i64::MIN), Some(i64::MAX)];
        for n in 0..5i64 {
            for start in bounds {
                for stop in bounds {
                    for step in [1, 2, 9, -1, -2, -9, i64::MIN, i64::MAX] {
                        let wrapped = |bound: Option<i64>, absent: i128| {
                            bound.map_or(absent, |i| i128::from(i) + if i < 0 { i128::from(n) } else { 0 })
                        };
                        let expected: Vec<usize> = if step > 0 {
                            let (from, to) = (wrapped(start, 0).max(0), wrapped(stop, n.into()));
                            (0..n as usize)
                                .filter(|&i| {
                                    i as i128 >= from && (i as i128) < to && (i as i128 - from) % i128::from(step) == 0
                                })
                                .collect()
                        } else {
                            let (from, to) =
                                (wrapped(start, i128::MAX).min(i128::from(n) - 1), wrapped(stop, -1).max(-1));
                            (0..n as usize)
                                .rev()
                                .filter(|&i| {
                                    i as i128 <= from && i as i128 > to && (from - i as i128) % -i128::from(step) == 0
                                })
                                .collect()
                        };
                        let got: Vec<usize> = indices(n as usize, start, stop, step).collect();
                        assert_eq!(got, expected, "{n} items, [{start:?}:{stop:?}:{step}]");
                    }
                }
            }
        }
    }
}
