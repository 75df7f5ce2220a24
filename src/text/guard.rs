//! What a template may not do though each of its steps is small, found in its tree before it is compiled.
//!
//! - A product of a list costs no step, however long it is, and a text is made of it at once. Each chain of products is
//!   written as `(a * b * c)|__made__`, which makes the list, a step for each item.
//! - A text of a list is made at once too, before it is paid for, and may be far longer than what the list takes: whatever
//!   may be a list where the machine makes a text of it is written as `(a)|__weighed__`, which pays for that text first.
//! - A namespace that holds itself, even inside a list, would be printed without end. So namespaces stay in the variables
//!   that `set` puts them in, and only their attributes are used: templates need them to carry a value out of a loop.
//!
//! The tree is the template machine's own, so that nothing has to guess what binds to what. It comes as JSON, where no kind
//! of node can be forgotten. The machine calls this interface unstable: Cargo.toml names its version.

use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Name of the filter that makes a list of a product.
pub(super) const MADE: &str = "__made__";
/// Name of the filter that pays for the text of a list.
pub(super) const WEIGHED: &str = "__weighed__";
/// Filters that make no text of what they are given.
const TEXTLESS: &str = "abs attr batch bool count d default dictsort first float groupby int items last length list max min \
    reject rejectattr reverse round select selectattr slice sort sum tojson unique __made__ __weighed__";
/// Functions that make a text of what they are given, as methods do. Others, macros above all, do not.
const TEXT_FUNCTIONS: [&str; 2] = ["raise_exception", "strftime_now"];
/// Bytes of a text in a list for one step: less than the machine counts, for quotes and escapes.
const BYTES_PER_STEP: usize = 8;
/// The function that makes namespaces.
const NAMESPACE: &str = "namespace";

/// Writes `text`, a template of this name, so that products are made and texts of lists are paid for, or says why it is
/// refused. What does not parse comes back as it is: compiling it names the fault.
pub(super) fn guarded(name: &str, text: String, syntax: SyntaxConfig) -> Result<String, Error> {
    let Ok(tree) = parse(&text, name, syntax) else { return Ok(text) };
    let tree = serde_json::to_value(tree).map_err(|e| Error::new(ErrorKind::SyntaxError, e.to_string()))?;
    let mut guard = Guard { text: &text, namespaces: BTreeSet::from([NAMESPACE]), inserts: Vec::new() };
    guard.find_namespaces(&tree);
    guard.check(&tree)?;
    Ok(guard.written())
}

/// Nodes are `{"expr" | "stmt": kind, "inner": [fields, span]}`.
struct Guard<'a> {
    text: &'a str,
    /// Variables that hold one, and the function that makes them.
    namespaces: BTreeSet<&'a str>,
    /// What is written where. Equal places come only together of the same kind, inner filters before outer ones: `made`
    /// before `weighed`, as their names are ordered.
    inserts: Vec<(usize, String)>,
}

/// Kind and fields of a node; else nothing.
fn node(json: &Json) -> Option<(&str, &Json)> {
    let kind = json.get("expr").or_else(|| json.get("stmt"))?.as_str()?;
    Some((kind, json.get("inner")?.get(0)?))
}

fn variable(json: &Json) -> Option<&str> {
    node(json).filter(|(kind, _)| *kind == "Var").and_then(|(_, fields)| fields["id"].as_str())
}

/// Whether a node is `left op right`.
fn is_binary(json: &Json, op: &str) -> bool {
    node(json).is_some_and(|(kind, fields)| kind == "BinOp" && fields["op"] == op)
}

/// Where a node begins and ends. It ends there; only of arithmetic is it sure to begin there.
fn span(json: &Json) -> [usize; 2] {
    ["start_offset", "end_offset"].map(|name| json["inner"][1][name].as_u64().expect("a span has it") as usize)
}

/// Variable and arguments of `{% set variable = namespace(arguments) %}`.
fn new_namespace(json: &Json) -> Option<(&str, &Json)> {
    let (_, set) = node(json).filter(|(kind, _)| *kind == "Set")?;
    let (_, call) = node(&set["expr"]).filter(|(kind, _)| *kind == "Call")?;
    (variable(&call["expr"])? == NAMESPACE).then_some((variable(&set["target"])?, &call["args"]))
}

fn children(json: &Json) -> Box<dyn Iterator<Item = &Json> + '_> {
    match json {
        Json::Array(items) => Box::new(items.iter()),
        Json::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

impl<'a> Guard<'a> {
    fn find_namespaces(&mut self, json: &'a Json) {
        self.namespaces.extend(new_namespace(json).map(|(name, _)| name));
        children(json).for_each(|child| self.find_namespaces(child));
    }

    fn is_namespace(&self, json: &Json) -> bool {
        variable(json).is_some_and(|name| self.namespaces.contains(name))
    }

    /// Notes products, and refuses namespaces where they are more than what an attribute is of, or what is tested.
    fn check(&mut self, json: &'a Json) -> Result<(), Error> {
        if let Some((_, arguments)) = new_namespace(json) {
            return self.check(arguments);
        }
        match node(json) {
            Some(("GetAttr" | "GetItem" | "Test", fields)) if self.is_namespace(&fields["expr"]) => {
                let mut others = fields.as_object().into_iter().flatten().filter(|(name, _)| *name != "expr");
                return others.try_for_each(|(_, other)| self.check(other));
            }
            Some(("BinOp", fields)) if is_binary(json, "Mul") => {
                self.wrap(span(json), MADE);
                // A chain is made as a whole.
                let (mut left, mut right) = (&fields["left"], &fields["right"]);
                while is_binary(left, "Mul") {
                    self.check(right)?;
                    (left, right) = (&left["inner"][0]["left"], &left["inner"][0]["right"]);
                }
                self.check(right)?;
                return self.check(left);
            }
            Some(("BinOp", fields)) if is_binary(json, "Concat") || is_binary(json, "In") => {
                self.weigh(&fields["left"]);
                if fields["op"] == "Concat" {
                    self.weigh(&fields["right"]);
                }
            }
            Some(("Filter", fields)) if !is_textless(fields) => {
                if !fields["expr"].is_null() {
                    self.inserts.push((span(json)[0], format!("{WEIGHED}|")));
                }
                self.weigh_arguments(&fields["args"]);
            }
            Some(("Call", fields)) if makes_text(&fields["expr"]) => self.weigh_arguments(&fields["args"]),
            Some(("Var", fields)) if self.is_namespace(json) => {
                let (line, name) = (&json["inner"][1]["start_line"], &fields["id"]);
                let refused = format!("line {line}: {name} is a namespace, of which only attributes can be used");
                return Err(Error::new(ErrorKind::InvalidOperation, refused));
            }
            _ => {}
        }
        children(json).try_for_each(|child| self.check(child))
    }

    fn wrap(&mut self, [start, end]: [usize; 2], filter: &str) {
        self.inserts.push((start, "(".into()));
        self.inserts.push((end, format!(")|{filter}")));
    }

    fn weigh_arguments(&mut self, arguments: &Json) {
        for argument in arguments.as_array().into_iter().flatten() {
            // {"Pos": node}, {"Kwarg": [name, node]}, and what is spread, which comes as items.
            let value = argument.get("Pos").or_else(|| argument.get("Kwarg")?.get(1));
            value.into_iter().for_each(|value| self.weigh(value));
        }
    }

    /// What a text will be made of, if it may be a list or a mapping.
    fn weigh(&mut self, json: &Json) {
        match node(json) {
            None | Some(("Const" | "Compare" | "Test" | "UnaryOp", _)) => {}
            Some(("IfExpr", fields)) => {
                ["true_expr", "false_expr"].iter().for_each(|branch| self.weigh(&fields[branch]))
            }
            Some(("BinOp", fields)) => {
                if ["Add", "Mul", "ScAnd", "ScOr"].iter().any(|op| fields["op"] == *op) {
                    self.wrap(span(json), WEIGHED);
                }
            }
            Some(_) => self.inserts.push((span(json)[1], format!("|{WEIGHED}"))),
        }
    }

    fn written(mut self) -> String {
        self.inserts.sort();
        let mut written = String::with_capacity(2 * self.text.len());
        let mut done = 0;
        for (at, insert) in &self.inserts {
            written.push_str(&self.text[done..*at]);
            written.push_str(insert);
            done = *at;
        }
        written + &self.text[done..]
    }
}

/// `map` makes text where it is not of an attribute: it may be given any other filter.
fn is_textless(filter: &Json) -> bool {
    let name = filter["name"].as_str().unwrap_or_default();
    let is_of_attribute =
        || filter["args"].as_array().is_some_and(|all| all.iter().all(|one| one["Kwarg"][0] == "attribute"));
    TEXTLESS.split(' ').any(|one| one == name) || name == "map" && is_of_attribute()
}

fn makes_text(callee: &Json) -> bool {
    node(callee).is_some_and(|(kind, _)| kind == "GetAttr")
        || variable(callee).is_some_and(|name| TEXT_FUNCTIONS.contains(&name))
}

/// The filter: the list that a product stands for. Products of strings and tuples are made, and paid for, by the machine.
pub(super) fn made(state: &State, product: Value) -> Result<Value, Error> {
    match product.kind() {
        ValueKind::Iterable => super::slices::items(state, &product).map(Value::from),
        _ => Ok(product),
    }
}

/// What `{{ }}` writes: into a text where it stands in a block that is kept.
pub(super) fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let value = weighed(state, value.clone())?;
    escape_formatter(out, state, &value)
}

/// The filter: the value, once the text of what is in it is paid for.
pub(super) fn weighed(state: &State, value: Value) -> Result<Value, Error> {
    // Some can be gone through but once.
    let value = if value.kind() == ValueKind::Iterable { made(state, value)? } else { value };
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        weigh(state, &value)?;
    }
    Ok(value)
}

fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    let n_bytes = value.as_str().map_or(0, str::len);
    state.consume_fuel(1 + (n_bytes / BYTES_PER_STEP) as u64)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.try_for_each(|item| weigh(state, &item)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            weigh(state, &key)?;
            weigh(state, &value.get_item(&key)?)
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<String, String> {
        guarded("t", text.into(), SyntaxConfig::default()).map_err(|e| e.detail().unwrap_or_default().into())
    }

    #[test]
    fn products_are_made_and_nothing_else_changes() {
        for (text, expected) in [
            ("{{ a * b }}*", "{{ (a * b)|__made__ }}*"),
            ("{{ 'é' + 2 * b.c[1]|list(x * 2) - d }}", "{{ 'é' + (2 * b.c[1]|list((x * 2)|__made__))|__made__ - d }}"),
            ("{{ a + -b * c ** 2 / d * e }}", "{{ a + ((-b * c ** 2)|__made__ / d * e)|__made__ }}"),
            ("{{ not a*b is even }}", "{{ not (a*b is even)|__made__ }}"),
            ("{{ f(*a, **b) + '*' + a ** b }}", "{{ f(*a, **b) + '*' + a ** b }}"),
            (
                "{% set x = [1]*3 %}{% if x*2 %}{% endif %}",
                "{% set x = ([1]*3)|__made__ %}{% if (x*2)|__made__ %}{% endif %}",
            ),
            ("{{ (a * b) * c }}", "{{ ((a * b) * c)|__made__ }}"),
            ("{{ a * b * (c * d) * e }}", "{{ (a * b * ((c * d)|__made__) * e)|__made__ }}"),
            ("{# a * b #}{% raw %}{{ a * b }}{% endraw %}", "{# a * b #}{% raw %}{{ a * b }}{% endraw %}"),
            ("{{ a * }}", "{{ a * }}"),
        ] {
            assert_eq!(of(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_may_be_a_list_is_weighed_where_it_becomes_a_text() {
        for (text, expected) in [
            ("{{ a ~ 'b' ~ c.d }}", "{{ a|__weighed__ ~ 'b' ~ c.d|__weighed__ }}"),
            ("{{ 'é' ~ (a + b)|first ~ (c) }}", "{{ 'é' ~ (a + b)|first|__weighed__ ~ (c|__weighed__) }}"),
            ("{{ (a + b) ~ c * 2 }}", "{{ ((a + b)|__weighed__) ~ ((c * 2)|__made__)|__weighed__ }}"),
            ("{{ (a) in 'b' and 'a' in b }}", "{{ (a|__weighed__) in 'b' and 'a' in b }}"),
            ("{{ [a] + b not in 'b' }}", "{{ ([a] + b)|__weighed__ not in 'b' }}"),
            ("{{ a|length ~ 1 }}", "{{ a|length|__weighed__ ~ 1 }}"),
            ("{{ a.b | upper | trim('c') }}", "{{ a.b | __weighed__|upper | __weighed__|trim('c') }}"),
            ("{{ a|join(b, d=[c + d]) }}", "{{ a|__weighed__|join(b|__weighed__, d=[c + d]|__weighed__) }}"),
            ("{{ a|map(attribute='b')|list }}", "{{ a|map(attribute='b')|list }}"),
            ("{{ a|map('upper') }}", "{{ a|__weighed__|map('upper') }}"),
            (
                "{{ a.replace('b', c|last, d if e else -f) }}",
                "{{ a.replace('b', c|last|__weighed__, d|__weighed__ if e else -f) }}",
            ),
            ("{{ f(a) ~ '' }}{% call f(a) %}{% endcall %}", "{{ f(a)|__weighed__ ~ '' }}{% call f(a) %}{% endcall %}"),
            ("{{ raise_exception(a + b) }}", "{{ raise_exception((a + b)|__weighed__) }}"),
            (
                "{% filter upper %}{% endfilter %}{{ (1 ~ 2) ~ -a }}",
                "{% filter upper %}{% endfilter %}{{ (1 ~ 2) ~ -a }}",
            ),
        ] {
            assert_eq!(of(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn namespaces_stay_where_they_are() {
        let right =
            "{% set ns = namespace(a=1, b=[x]) %}{% set ns.a = ns.b + [ns['a']] %}{{ ns.a is true and ns is defined }}";
        assert_eq!(of(right).as_deref(), Ok(right));
        let refused = Err("line 1: \"ns\" is a namespace, of which only attributes can be used".to_string());
        for wrong in [
            "{% set ns.a = ns %}",
            "{% set ns.a = [ns] %}",
            "{{ ns }}",
            "{{ '' ~ ns }}",
            "{% set x = ns %}",
            "{{ ns | string }}",
            "{{ f(ns) }}",
            "{{ f(a=ns) }}",
            "{% for x in ns %}{% endfor %}",
            "{{ ns.a[ns] }}",
            "{% set m = namespace(a=ns) %}",
        ] {
            assert_eq!(of(&format!("{{% set ns = namespace() %}}{wrong}")), refused, "{wrong}");
            assert_eq!(of(&format!("{wrong}{{% set ns = namespace() %}}")), refused, "{wrong}");
        }
        for wrong in ["{{ [namespace()] }}", "{% set x = [namespace()] %}", "{% set x = namespace %}"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
