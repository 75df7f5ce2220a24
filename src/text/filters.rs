//! What transformers adds to the template language: functions, a JSON filter with Python's spacing, and one tag.

use super::template::Capped;
use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::fmt;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// The text of a template's `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception("...")`.
pub(super) fn raise_exception(text: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(text)))
}

/// `'%s' | format(x)`.
pub(super) fn format(state: &mut State, text: &Value, values: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    check_keys(text, "%(", ')')?;
    minijinja::filters::format(state, text, values)
}

/// Whether keys of a format, `%(key)s` or `{0[key]}`, are ASCII: the template machine goes through them byte by byte, and
/// panics within a character.
pub(super) fn check_keys(text: &Value, open: &str, close: char) -> Result<(), Error> {
    let keys = text.as_str().unwrap_or_default().split(open).skip(1);
    let is_ascii = |rest: &str| rest.split(close).next().is_none_or(str::is_ascii);
    if keys.into_iter().all(is_ascii) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, "a format whose keys are not ASCII is not supported"))
}

/// `strftime_now("%d %b %Y")`, in UTC: the standard library does not know the local zone.
pub(super) fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(now, &format).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: format {format:?} is not supported"))
    })
}

/// The formats that templates use, of seconds since 1970.
fn strftime(seconds: u64, format: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text += &match chars.next()? {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'B' => month_name.to_string(),
            'b' => month_name[..3].to_string(),
            'A' => day_name.to_string(),
            'a' => day_name[..3].to_string(),
            'H' => format!("{:02}", second / 3_600),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60),
            '%' => "%".to_string(),
            _ => return None,
        };
    }
    Some(text)
}

/// Year, month and day of the Gregorian calendar, of days since 1970. Counted from 1 March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// `tojson`, which transformers replaces by Python's `json.dumps`: no HTML escapes, spaces after commas and colons.
pub(super) fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // The only value that changes nothing; other options of json.dumps are refused by assert_all_used.
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    // A value may stand for far more than the memory it takes: a list may hold another many times.
    let mut bytes = Capped::default();
    let done = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            value
                .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(spaces.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    let failed = |e: &dyn fmt::Display| Error::new(ErrorKind::BadSerialization, e.to_string());
    done.map_err(|e| failed(&e))?;
    String::from_utf8(bytes.0).map_err(|e| failed(&e))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `{% generation %}` marks the answer for training and renders as its content: an `if` that always holds does the same.
pub(super) fn without_generation_tags(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start + 2..][..length];
        let name = tag.trim_matches(|c: char| matches!(c, '-' | '+') || c.is_whitespace());
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        result.push_str(&rest[..start + 2]);
        result.push_str(&if replacement == name { tag.to_string() } else { tag.replacen(name, replacement, 1) });
        rest = &rest[start + 2 + length..];
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @N`.
        let all = "%Y-%m-%d %F %T %H:%M:%S %A %a %B %b %y %%";
        let text = "2024-02-29 2024-02-29 23:59:59 23:59:59 Thursday Thu February Feb 24 %";
        assert_eq!(strftime(1_709_251_199, all).unwrap(), text);
        assert_eq!(strftime(0, "%F %a").unwrap(), "1970-01-01 Thu");
        assert_eq!(strftime(4_107_542_400, "%F %a").unwrap(), "2100-03-01 Mon");
        assert_eq!(strftime(0, "%Q"), None);
        assert_eq!(strftime(0, "%"), None);
    }

    #[test]
    fn only_generation_tags_change() {
        let text = "{%- generation -%}a{% endgeneration %}{% if generation %}{{ '%}' }}{% endif %}{% x";
        let expected = "{%- if true -%}a{% endif %}{% if generation %}{{ '%}' }}{% endif %}{% x";
        assert_eq!(without_generation_tags(text), expected);
        for broken in ["{%}", "{%", "{%%}", "{%}generation%}"] {
            assert_eq!(without_generation_tags(broken), broken);
        }
    }
}
