//! Chat templates against transformers, and templates that mean harm: they come with a model's files.

use super::golden;
use proxytune::text::tokenizer::TokenizerConfig;
use proxytune::text::{ChatTemplate, Message};
use proxytune::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    name: String,
    template: String,
    messages: Vec<GoldenMessage>,
    add_generation_prompt: bool,
    text: Option<String>,
    raises: Option<String>,
}

#[derive(Deserialize)]
struct GoldenMessage {
    role: String,
    content: String,
}

fn compile(text: &str) -> Result<ChatTemplate> {
    let tokens = TokenizerConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..TokenizerConfig::default() };
    ChatTemplate::compile(PathBuf::from("dir/chat_template.jinja"), text, &tokens)
}

fn render(text: &str) -> Result<String> {
    compile(text)?.render(&[Message::new("user", "hello")], true)
}

#[test]
fn prompts_are_those_of_transformers() {
    let goldens: Vec<Golden> = golden("prompts.json");
    assert!(goldens.len() >= 60);
    for golden in goldens {
        let messages: Vec<Message> = golden.messages.iter().map(|m| Message::new(&m.role, &m.content)).collect();
        let rendered = compile(&golden.template).and_then(|t| t.render(&messages, golden.add_generation_prompt));
        match (rendered, golden.text, golden.raises) {
            (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{}", golden.name),
            (Err(Error::Argument { param, message }), None, Some(raised)) => {
                assert_eq!(param, "chat");
                assert!(message.contains(&raised), "{}: {message}", golden.name);
            }
            (rendered, ..) => panic!("{}: {rendered:?}", golden.name),
        }
    }
}

/// The error of a template names its file, and says `part`.
fn refused(label: &str, text: &str, part: &str) {
    let error = render(text).err().unwrap_or_else(|| panic!("{label}: renders"));
    assert!(matches!(&error, Error::File { path, .. } if path.ends_with("chat_template.jinja")), "{label}: {error:?}");
    assert_eq!(error.exit_code(), 3);
    let said = error.to_string();
    assert!(said.contains(part), "{label}: {said:?} does not say {part:?}");
    assert!(said.len() < 1_000, "{label}: {} bytes of message", said.len());
}

// row 46
#[test]
fn templates_that_are_wrong() {
    refused("syntax", "a\nb\n{% if %}", "line 3: syntax error");
    refused("not closed", "{% for m in messages %}", "syntax error");
    refused("unknown filter", "\n{{ messages | nonsense }}", "line 2: unknown filter");
    refused("unknown function", "{{ nonsense() }}", "unknown");
    refused("unknown method", "{{ messages.nonsense() }}", "unknown method");
    refused("an undefined value's field", "{{ nothing.field }}", "undefined value");
    refused("division by zero", "{{ 1 // 0 }}", "invalid operation");
    refused("a date in an unknown form", "{{ strftime_now('%Q') }}", "format \"%Q\" is not supported");
    refused("escaped JSON", "{{ messages | tojson(ensure_ascii=true) }}", "ensure_ascii=true is not supported");
    refused("unknown option of JSON", "{{ messages | tojson(sort=true) }}", "sort");
    refused("a format's key", "{{ '%(ké)s' | format(a=1) }}", "keys are not ASCII");
    refused("a format's index", "{{ '{a[ké]}'.format(a={}) }}", "keys are not ASCII");
    let formats = "{{ 'é %s' | format(1) }}|{{ '{} é {a[k]}'.format(1, a={'k': 2}) }}";
    assert_eq!(render(formats).expect("keys of ASCII"), "é 1|1 é 2");
    let long = format!("{}{{{{ x }}}}", " ".repeat(32 << 10));
    refused("too long", &long, "32775 bytes, the limit is 32768");
}

// row 51
#[test]
fn templates_reach_nothing_outside() {
    refused("another file", "{% include '/etc/passwd' %}", "unknown statement include");
    refused("another template", "{% import 'x' as x %}", "unknown statement import");
    refused("a base template", "{% extends 'x' %}", "unknown statement extends");
    refused("Python's classes", "{{ ''.__class__.__mro__ }}", "undefined value");
    refused("Python's globals", "{{ raise_exception.__globals__['os'] }}", "undefined value");
    assert_eq!(
        render("{{ environ is defined }}{{ self is defined }}{{ config is defined }}").expect("no such names"),
        "FalseFalseFalse"
    );
}

// rows 48, 49
#[test]
fn templates_that_never_end() {
    let steps = "more than 250000 steps";
    refused("a loop", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", steps);
    refused("a macro of itself", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion limit exceeded");
    refused("a long range", "{{ range(10000000000) }}", "range");
    refused(
        "doubling",
        "{% set ns = namespace(a='aaaaaaaa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        steps,
    );
    refused(
        "100 times 100 MB",
        "{% set ns = namespace(a=[]) %}{% for i in range(100) %}{% set ns.a = ns.a + ['a' * 100000000] %}{% endfor %}",
        steps,
    );
    refused("10 GB", "{{ 'a' * 10000000000 }}", "");
    refused(
        "replacing",
        "{% set a = 'a' * 10000 %}{% set b = a | replace('a', a) %}{{ b | replace('a', a) | length }}",
        steps,
    );
    refused("joining", "{% set a = 'a' * 10000 %}{{ range(100000) | join(range(100000) | join(a)) | length }}", steps);
    // Views of views, each of which the machine would count through all below it.
    let namespace = |step: &str| {
        format!(
            "{{% set ns = namespace(a=[1, 2]) %}}{{% for i in range(100000) %}}{{% set ns.a = {step} %}}{{% endfor %}}"
        )
    };
    refused("slices of slices", &namespace("ns.a[:1]"), steps);
    refused("slices upside down", &namespace("ns.a[::-1]"), steps);
    refused("a list on itself", &namespace("ns.a | chain(ns.a)"), "unknown filter");
    refused("a list with itself", &namespace("ns.a | zip(ns.a)"), "unknown filter");
    refused("a slice of a long list", "{{ ([1] * 100000000)[1:] | length }}", steps);
    refused(
        "slices of a long text",
        "{% set a = 'a' * 5000000 %}{% for i in range(100000) %}{% if a[:1] == 'b' %}{% endif %}{% endfor %}",
        steps,
    );
    for made in ["'' ~ {}", "{} | string", "{} | join", "{} | tojson", "{} | upper", "{}[0]", "{} == [1]"] {
        for product in ["100000000 * [1]", "[1] * 100000000", "2 * [1] * 40000000", "100000000 * (' ' | list)"] {
            let text = format!("{{{{ ({}) | length }}}}", made.replace("{}", &format!("({product})")));
            refused(&text, &text, steps);
        }
    }
    refused(
        "a long text again and again, as JSON",
        "{% set a = 'a' * 1000000 %}{{ [a, a, a, a, a] | tojson | length }}",
        "output limit",
    );
    refused("a list repeated, inside", "{{ 1 ~ 47758072*(' ' | list) }}", steps);
    refused(
        "4 MiB of output",
        "{% set a = 'a' * 5000 %}{% for i in range(1000) %}{{ a }}{% endfor %}",
        "more than 4194304 bytes of output",
    );
}

/// A text of a list may be far longer than the list is: it is paid for before it is made.
#[test]
fn texts_of_lists() {
    let twins = "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{% set l = ns.a %}";
    let long = "{% set a = 'a' * 1000000 %}{% set l = [a, a, a, a, a, a, a, a, a, {'a': a}] %}";
    let many =
        "{% set l = 80000 * ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 1) %}";
    for list in [twins, long, many] {
        for text in [
            "'' ~ l",
            "l ~ ''",
            "[] + l ~ ''",
            "l | string",
            "l | join",
            "l | upper | length",
            "[l] | map('upper') | list",
            "'' | replace('', l)",
            "'b'.replace('b', l)",
            "'%s' | format(l)",
            "l in 'a'",
            "{'k': l} | dictsort ~ ''",
            "raise_exception(l if true)",
            "l",
        ] {
            refused(text, &format!("{list}{{{{ {text} }}}}"), "more than 250000 steps");
        }
        for block in ["{% set t %}{{ l }}{% endset %}", "{% macro m() %}{{ l }}{% endmacro %}{{ m() }}"] {
            refused(block, &format!("{list}{block}"), "more than 250000 steps");
        }
    }
    for (text, expected) in [
        ("'' ~ [1, 'a'] ~ {'b': [2]}", "[1, 'a']{'b': [2]}"),
        ("['a', 1] | join(', ')", "a, 1"),
        ("range(3) | map('string') | join", "012"),
        ("messages | map(attribute='role') | join('-')", "user"),
        ("[1, 2]", "[1, 2]"),
        ("{'a': 1}.items() | list", "[('a', 1)]"),
    ] {
        assert_eq!(render(&format!("{{{{ {text} }}}}")).expect(text), expected, "{text}");
    }
}

/// Printed, they would end with the stack.
#[test]
fn namespaces_that_hold_themselves() {
    let only = "line 1: \"ns\" is a namespace, of which only attributes can be used";
    for inside in ["ns", "[ns]", "{'a': [ns]}", "dict(a=ns)", "ns | list"] {
        let text = format!("{{% set ns = namespace(a=1) %}}{{% set ns.a = {inside} %}}{{{{ ns.a }}}}");
        refused(inside, &text, only);
    }
    assert_eq!(
        render("{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a * 2 %}{% endfor %}{{ ns.a }}")
            .expect("as templates use them"),
        "8"
    );
}

/// As Python multiplies, and binds.
#[test]
fn products_are_those_of_python() {
    for (product, expected) in [
        ("2 * 3 + 4 * 5", "26"),
        ("-2 * 3 ** 2", "-18"),
        ("7 // 2 * 2 % 5", "1"),
        ("2 * messages | length", "2"),
        ("'ab' * 2 ~ 'c'", "ababc"),
        ("[1, 2] * 2", "[1, 2, 1, 2]"),
        ("(1, 2) * 2", "(1, 2, 1, 2)"),
        ("(1,) * 2 == (1, 1)", "True"),
        ("[] * 2", "[]"),
        ("(3 * ['a'])[1:] | join", "aa"),
        ("1.5 * 2", "3.0"),
    ] {
        assert_eq!(render(&format!("{{{{ {product} }}}}")).expect(product), expected, "{product}");
    }
}

/// Depth that would overflow a thread's usual stack.
// row 47
#[test]
fn templates_of_great_depth() {
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    refused("parentheses", &parens, "recursion limit");
    refused("lists", &parens.replace('(', "[").replace(')', "]"), "recursion limit");
    let ifs = format!("{}{}", "{% if x %}".repeat(1_500), "{% endif %}".repeat(1_500));
    refused("ifs", &ifs, "recursion limit");
    // Where the compiler would take the square of their number in time.
    for operator in ["+x", "~x", "**x", "//x", "*1", "-(-x)"] {
        let many = format!("{{{{ x{} }}}}", operator.repeat(30_000 / operator.len()));
        refused(operator, &many, "operators, the limit is 2000");
    }
    refused("minuses", &format!("{{{{ {}x }}}}", "-".repeat(32_000)), "32000 operators");
    // A chain is parsed in a loop, but compiled by recursion: these pass or are refused, and must come back.
    for (link, n) in [
        (".b", 16_000),
        ("[0]", 10_000),
        ("()", 16_000),
        ("|e", 16_000),
        ("+x", 2_000),
        ("~x", 2_000),
        ("[1:]", 8_000),
        (" is defined", 2_900),
        (" if x else x", 2_600),
    ] {
        let _ = render(&format!("{{{{ x{} }}}}", link.repeat(n)));
    }
    let _ = render(&format!("{{{{ {}x }}}}", "not ".repeat(4_000)));
    let _ = render(&format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(2_600)));
    let nest = |end: &str| {
        format!(
            "{{% set ns = namespace(a=[]) %}}{{% for i in range(100000) %}}{{% set ns.a = [ns.a] %}}{{% endfor %}}{end}"
        )
    };
    refused("values in values", &nest(""), "more than 250000 steps");
    // As deep as the steps allow, then printed.
    let printed = |n: u32, end: &str| nest(end).replace("100000", &n.to_string());
    for end in ["{{ ns.a }}", "{{ ns.a | tojson }}", "{{ ns.a == [ns.a] }}"] {
        let _ = render(&printed(15_000, end));
    }
}

/// Slices are this crate's own; the places they take are tested beside them.
#[test]
fn slices_are_those_of_python() {
    for (slice, expected) in [
        ("'héllo'[1:3]", "él"),
        ("'héllo'[::-1]", "olléh"),
        ("'héllo'[-3:-1]", "ll"),
        ("[1, 2, 3][1:]", "[2, 3]"),
        ("[1, 2, 3][::2]", "[1, 3]"),
        ("[1, 2, 3][:-1][::-1]", "[2, 1]"),
        ("[1, 2, 3][1:][0]", "2"),
        ("messages[1:] | length", "0"),
        ("range(10)[2:8:3] | list", "[2, 5]"),
        ("'a:b[1:]'[1:] ~ {'k': [1]}['k'][0]", ":b[1:]1"),
    ] {
        assert_eq!(render(&format!("{{{{ {slice} }}}}")).expect(slice), expected, "{slice}");
    }
    refused("a slice of no steps", "{{ 'a'[::0] }}", "cannot slice by step size of 0");
    refused("a slice of a number", "{{ 1[1:] }}", "");
    refused("a slice of a mapping", "{{ {'a': 1}[1:] }}", "cannot be sliced");
}

// row 50
#[test]
fn what_a_template_raises_is_about_the_request() {
    let raise = |text: &str| render(&format!("\n{{{{ raise_exception({text}) }}}}")).expect_err("it raises");
    let error = raise("'roles must alternate'");
    assert!(matches!(&error, Error::Argument { param, .. } if param == "chat"), "{error:?}");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("line 2: roles must alternate"), "{error}");
    let long = raise("'é' * 10000").to_string();
    assert!(long.len() < 700 && long.ends_with('é'), "{} bytes", long.len());
}

#[test]
fn contents_are_found_in_the_text() {
    let locate = |template: &str, messages: &[Message]| {
        let template = compile(template).expect("a right template");
        let text = template.render(messages, true).expect("it renders");
        let ranges = template.locate(messages, true, &text)?;
        Ok(ranges.into_iter().map(|range| text[range].to_string()).collect::<Vec<_>>())
    };
    let messages = [Message::new("system", " be <brief> "), Message::new("user", "a\u{f8f2}b")];
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
    assert_eq!(locate(plain, &messages).expect("plain"), [" be <brief> ", "a\u{f8f2}b"]);
    assert_eq!(
        locate(&plain.replace("m.content", "m.content.strip()"), &messages).expect("trimmed"),
        ["be <brief>", "a\u{f8f2}b"]
    );
    let last_only = "{{ messages[-1].content }}{{ messages[-1].content }}!";
    assert_eq!(locate(last_only, &messages).expect("twice"), ["a\u{f8f2}b"; 2]);
    for changed in ["m.content | upper", "m.content | replace('b', 'c')", "m.content[:1]", "m.content | length"] {
        let result: Result<Vec<String>> = locate(&plain.replace("m.content", changed), &messages);
        assert!(matches!(&result, Err(Error::Argument { param, .. }) if param == "prompt"), "{changed}: {result:?}");
    }
}
