//! Compares our checks of YAML with PyYAML's safe loader, which cloud-init uses, for handwritten documents and several
//! thousand generated ones. Intended differences are in [`INTENDED`].

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use waifud_cloudinit::{UserDataError, validate_user_data};
use waifud_kit::testing::random;

/// Debian's Python, which finds Debian's PyYAML.
const PYTHON: &str = "/usr/bin/python3";

/// Generated documents. With the handwritten ones, well over a thousand are compared.
const MADE: usize = 6000;

/// Reads a JSON list of documents, and prints for each `null` (loaded) or the line of the error (0 if unknown).
/// cloud-init's loader is the safe loader with one more tag (`cloudinit/safeyaml.py`); after any exception the document
/// is ignored.
const JUDGE: &str = r#"
import json, sys, yaml
class Loader(yaml.SafeLoader):
    pass
Loader.add_constructor("tag:yaml.org,2002:python/unicode", lambda l, n: l.construct_scalar(n))
def judge(text):
    try:
        yaml.load(text, Loader=Loader)
    except RecursionError:
        return -1
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        return mark.line + 1 if mark else 0
    except Exception:
        return 0
    return None
json.dump([judge(t) for t in json.load(sys.stdin)], sys.stdout)
"#;

/// Documents that we refuse and PyYAML loads, by our reason.
const INTENDED: [&str; 10] = [
    // cloud-init merges and prints the loaded value, which fails for a value that contains itself.
    "this alias refers to a value that contains it",
    // Far below Python's limit, part of which cloud-init needs itself.
    "the nesting is too deep",
    // Shared in Python, but expanded when cloud-init merges them.
    "its aliases expand to more than a million values",
    // YAML has two directives; another one is probably a mistake that changes the meaning of the rest.
    "found unknown directive name",
    // A lone surrogate: Python loads it, and fails when cloud-init writes it to a file.
    "found invalid Unicode character escape code",
    // The mark is invisible and would become part of a value or of a key.
    "a byte order mark is allowed only at the beginning of a file",
    // PyYAML reads `[? a]` as a key; libyaml differs before commas. cloud-init does not need it.
    "a question mark inside brackets needs quotes",
    // `[a:]`: a key without a value for PyYAML, an error for YAML 1.1.
    "found unexpected ':'",
    // Spaces and then tabs before a block's first line: the indentation is ambiguous.
    "found a tab character where an indentation space is expected",
    // Brackets and commas in a tag: PyYAML parses it, but has no constructor for it.
    "did not find expected whitespace or line break",
];

#[rustfmt::skip]
const BY_HAND: &[&str] = &[
    "a: 1\n", "a:\t1\n", "a: \tb\n", "a:\n\tb: 1\n", "\ta: 1\n", "a: b: c\n", "a: 'b\n", "a: \"b\\q\"\n",
    "a: \"\\x41\"\n", "a: @b\n", "a: `b`\n", "a: %b\n", "%b: a\n", "- a\nb: c\n", "a: [b, c\n", "a: {b, c}\n",
    "a: {b: c, d}\n", "{a: 1}\n", "a: [b]c\n", "? a\n: b\n", "? [a]\n: b\n", "[a]: b\n", "{a: 1}: b\n",
    "a: {{ b }}\n", "a: {{ b }\n", "a: !!binary aGk=\n", "a: !!binary aGk\n", "a: !!binary \"é\"\n", "a: !!int x\n",
    "a: !!int ''\n", "a: !!int '0o7'\n", "a: !!int ' 7 '\n", "a: !!float x\n", "a: !!float ' 1e5 '\n",
    "a: !!float infinity\n", "a: !!bool maybe\n", "a: !!bool YES\n", "a: !!null x\n", "a: !!null [x]\n",
    "a: !!str [x]\n", "a: !!str {=: x}\n", "a: !!str {x: y}\n", "a: !!seq {x: y}\n", "a: !!seq x\n", "a: !!map [x]\n",
    "a: !!set {x, y}\n", "a: !!set [x]\n", "a: !!omap [{x: 1}]\n", "a: !!omap [x]\n", "a: !!omap {x: 1}\n",
    "a: !!pairs [{x: 1, y: 2}]\n", "a: !!pairs [{[x]: 1}]\n", "a: !!python/unicode x\n",
    "a: !!python/object:os.system x\n", "a: !foo x\n", "a: ! 12\n", "a: !<tag:yaml.org,2002:str> x\n", "a: !<x> y\n",
    "!!map {a: b}\n", "a: !e!x y\n", "<<: {a: 1}\n", "<<: [{a: 1}, {b: 2}]\n", "<<: 1\n", "<<: [1]\n",
    "<<: !foo {a: 1}\n", "<<: {a: !foo b}\n", "a: <<\n", "- <<\n", "a: =\n", "=: a\n", "'<<': 1\n", "!!str <<: 1\n",
    "a: 2024-02-30\n", "a: 2024-02-29\n", "a: 2023-02-29\n", "a: 0000-01-01\n", "a: 2024-1-1\n",
    "a: 2024-01-01 25:00:00\n", "a: 2024-01-01t10:00:00.5 +1:30\n", "a: 2024-01-01 10:00:00 +99\n",
    "a: 2024-01-01T10:00:00Z\n", "a: !!timestamp x\n", "a: !!timestamp 2024-1-1\n", "a: 0b\n", "a: 0b_\n", "a: 0x_\n",
    "a: 0_\n", "a: 0777\n", "a: 0888\n", "a: 0o7\n", "a: 1_000\n", "a: 1:30\n", "a: 1:99\n", "a: -0x1f\n", "a: +12\n",
    "a: .5\n", "a: -.5\n", "a: 1.\n", "a: 1e5\n", "a: 1.0e+5\n", "a: ._5\n", "a: 1:30.5\n", "a: .inf\n", "a: -.INF\n",
    "a: .nan\n", "a: &x 1\nb: *x\n", "a: *x\n", "a: &x 1\nb: &x 2\n", "a: &x [*x]\n", "a: &x {b: *x}\n", "a: & b\n",
    "a: &x\n", "a: *x:\n", "&x a: b\n", "*x : b\n", "a: |\n  b\n c\n", "a: |\n  b\n  c\n", "a: |9\n b\n",
    "a: |0\n b\n", "a: |-x\n b\n", "a: >+\n  b\n\n", "a: >2\n  b\n", "---\na: 1\n", "---\na: 1\n...\n",
    "a: 1\n---\nb: 2\n", "a: 1\n...\nb\n", "%YAML 1.1\n---\na: 1\n", "%YAML 2.0\n---\na: 1\n",
    "%TAG ! tag:x,1:\n---\na: !y z\n", "%FOO bar\n---\na: 1\n", "...\n", "---\n", "---\n---\n", "", "\n", "# only\n",
    "~\n", "null\n", "a\n", "- a\n- b\n", "-a\n- b\n", "- a\n -b\n", "- a\n - b\n", "a:\n- b\n- c\n",
    "a:\n - b\n- c\n", "a:\n  b: 1\n c: 2\n", "a:\n b: 1\n  c: 2\n", "a: b\n c: d\n", "a: b\n  c\n", "a : b\n",
    "a:b\n", "a:b: c\n", "'a': b\n", "\"a\": b\n", "\"a\" b\n", "'a' 'b'\n", "a: 'it''s'\n", "a: 'it's'\n",
    "a: \"\\u00e9\\U0001F600\"\n", "a: \"\\ud800\"\n", "a: \"\\u12\"\n", "a: b #c\n", "a: b#c\n", "a: #c\n",
    "a: [#c\n]\n", "a: [b #c\n]\n", "a: [b,#c\n]\n", "[a, b: c, d]\n", "{a: [b, {c: d}]}\n", "{a:b}\n",
    "{a: b, a: c}\n", "{\"a\":b}\n", "{a, , b}\n", "[a, , b]\n", "[,]\n", "[a,]\n", "{a,}\n", "{,}\n", "[? a]\n",
    "{? a : b}\n", "? a\n", "?\n", ": b\n", "- : b\n", "a: - b\n", "a: ? b\n", "a: : b\n", "a: , b\n", "a: ] b\n",
    "a: } b\n", "a: \\n\n", "a: \u{a0}b\n", "a: \u{85}b\n", "a: \u{2028}b\n", "a: b\u{2029}c: d\n", "a: \u{7f}\n",
    "a: \u{9f}\n", "a: \u{fffe}\n", "a: \u{feff}b\n", "\u{feff}a: b\n", "a: \u{1f600}\n", "é: ü\n",
    "a: b\r\nc: d\r\n", "a: b\rc: d\r", "a:\r\n  - b\r\n", "a: |\r\n  b\r\n", "a: \"b\\\n  c\"\n", "a: 'b\n\n  c'\n",
    "a: 'b\nc'\n", "a: \"b\nc\"\n", "a: b\n...\n# x\n", "a: 'b\n---\nc'\n",
    "runcmd:\n  - [ls, -l, /]\n  - echo \"a: b\"\n", "runcmd:\n  - echo a: b\n", "runcmd:\n  - echo 'a' && echo: b\n",
    "runcmd:\n - echo \"$HOME\" > /x\n", "users:\n  - default\n  - name: a\n    sudo: ALL=(ALL) NOPASSWD:ALL\n",
    "write_files:\n- path: /x\n  content: |\n    a\n   b\n",
    "write_files:\n- path: /x\n  permissions: 0644\n  content: >-\n    a\n",
    "password: a#b\nssh_pwauth: yes\nchpasswd: {expire: False}\n", "password: %a\n", "password: !a\n",
    "password: *a\n", "password: &a\n", "password: a: b\n", "password: 'a: b'\n", "password: {a\n",
    "bootcmd: [a, b,\n  c]\n", "bootcmd: [a, b,\nc]\n", "packages:\n- a\n-b\n", "packages: \n  - a\n  - [b, 1.2]\n",
    "timezone: Europe/Berlin\nlocale: de_DE\n", "mounts:\n- [ sdb, /mnt, auto, \"defaults,nofail\", \"0\", \"0\" ]\n",
    "a:\n  - b:\n    - c\n   - d\n", "key with spaces: x\n", "a: >\n  b\n\n   c\n  d\n", "a: |\n\n\n  b\n",
    "a: |\n   \n  b\n", "a: |\n\tb\n", "a:  |  # x\n  b\n", "a: |x\n  b\n", "- - - a\n  - b\n",
    "- ? a\n  : b\n- c: d\n  e: f\n", "a: 'b' # c\n", "a: 'b'#c\n", "a: [b]#c\n", "a: \"b\"c\n", "a: \"b\": c\n",
    "a: 'x': y\n", "[a]b: c\n", "a: !!str\n", "a: !!int\n", "a: !!float\n", "? |\n  a\n: b\n",
    "a: !!binary |\n  aGk=\n  aGk=\n", "a: !!str 2024-99-99\n", "a: '2024-99-99'\n", "2024-99-99: a\n", "0b_: a\n",
    "!foo a: b\n", "a: !<> b\n", "a: !!x!y b\n", "a: !a,b c\n", "[!foo, a]\n", "[a, &b , *b]\n", "[*a]\n",
    "a: &a.b c\nd: *a.b\n", "a: &ä c\n", "%TAG !e! tag:yaml.org,2002:\n---\na: !e!int 1\n",
    "%TAG !e! tag:yaml.org,2002:\n%TAG !e! x\n---\na: 1\n", "%YAML 1.1\n%YAML 1.1\n---\na: 1\n", "%YAML\n---\na\n",
    "%YAML 1.1 # x\n---\na: b\n", "a: b\n%YAML 1.1\n---\nc: d\n", "\"a\n b\": c\n", "a\n b: c\n", "a: b\n\n\n  c\n",
    "a:    \n\n  b: c\n", "a: [\nb\n]\n", "a: {\nb: c\n}\n", "a:\n  [b,\n c]\n", "a: --- b\n", "--- a\n",
    "--- |\n a\n", "--- a: b\n", "---a: b\n", "....\n", "a: ...\n", "... a\n", "- ---\n", "-\n", "- \n- \n", "-\ta\n",
    "-\t- a\n", "?\ta\n", "a:\n  -\tb\n", "a: [\tb ]\n", "a: {b:\tc}\n", "a: b\t\n", "a: b\t#c\n", "a: 'b'\t\n",
    "\t\n", "a: 1\n\t\n", "a: 1\n\t# x\n", "  a: 1\n b: 2\n", "  a: 1\n  b: 2\n",
];

#[test]
fn yaml_is_accepted_exactly_if_pyyaml_accepts_it() {
    if !pyyaml_or_skip() {
        return;
    }
    let documents = corpus();
    assert!(documents.len() > 1000, "{}", documents.len());
    let judged = pyyaml(&documents);
    let mut differing = Vec::new();
    let (mut refused, mut same_line) = (0, 0);
    for (text, theirs) in documents.iter().zip(&judged) {
        let ours = validate_user_data(text);
        let reason = match &ours {
            Err(UserDataError::NotYaml {
                line,
                column,
                reason,
            }) => {
                let lines = text
                    .split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
                    .count() as u64;
                assert!(
                    (1..=lines + 1).contains(line) && *column > 0 && !reason.is_empty(),
                    "{text:?}: {ours:?}"
                );
                if theirs.as_u64().is_some_and(|theirs| theirs > 0) {
                    refused += 1;
                    same_line += usize::from(theirs.as_u64() == Some(*line));
                }
                Some(*reason)
            }
            _ => None,
        };
        let meant = reason.is_some_and(|reason| INTENDED.contains(&reason));
        if reason.is_some() == theirs.is_null() && !meant {
            differing.push(format!("{text:?}\n  ours: {ours:?}\n  PyYAML: {theirs}"));
        }
    }
    assert!(
        differing.is_empty(),
        "{} of {} differ:\n{}",
        differing.len(),
        documents.len(),
        differing
            .into_iter()
            .take(40)
            .collect::<Vec<_>>()
            .join("\n")
    );
    // If one side refused or accepted all documents, nothing would be compared.
    let loaded = judged.iter().filter(|verdict| verdict.is_null()).count();
    assert!(
        loaded > 500 && refused > 500,
        "{loaded} loaded, {refused} refused"
    );
    assert!(
        same_line * 100 >= refused * 85,
        "{same_line} of {refused} report the same line"
    );
}

#[test]
fn listed_differences_are_refused_with_their_reason() {
    let nested = format!("#cloud-config\na: {}{}\n", "[".repeat(300), "]".repeat(300));
    let within = "#cloud-config\na: &x [*x]\n".to_owned();
    let mut grows = "#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..8 {
        let below = vec![format!("*a{}", n - 1); 10].join(", ");
        let line = format!("a{n}: &a{n} [{below}]\n");
        grows.push_str(&line);
    }
    let directive = "#cloud-config\n%FOO x\n---\na: 1\n".to_owned();
    let surrogate = "#cloud-config\na: \"\\ud800\"\n".to_owned();
    let mark = "#cloud-config\na: \u{feff}b\n".to_owned();
    let question = "#cloud-config\na: [? b]\n".to_owned();
    let colon = "#cloud-config\na: [b:]\n".to_owned();
    let tab = "#cloud-config\na: |\n  \tb\n".to_owned();
    let tag = "#cloud-config\n<<: !f]o {a: 1}\n".to_owned();
    let texts = [
        within, nested, grows, directive, surrogate, mark, question, colon, tab, tag,
    ];
    assert_eq!(texts.len(), INTENDED.len());
    for (text, wanted) in texts.iter().zip(INTENDED) {
        let error = validate_user_data(text).unwrap_err();
        assert!(
            matches!(error, UserDataError::NotYaml { reason, .. } if reason == wanted),
            "{error}"
        );
    }
}

/// Each document as user-data.
fn corpus() -> Vec<String> {
    let mut random = Random(random::Random(0x5eed));
    let mut documents: Vec<String> = BY_HAND.iter().map(|text| (*text).to_owned()).collect();
    for _ in 0..MADE {
        let seed = random.pick(BY_HAND);
        documents.push(random.changed(seed));
    }
    // Control characters are refused before YAML is parsed.
    documents.retain(|text| {
        !text
            .chars()
            .any(|c| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r'))
    });
    let mut documents: Vec<String> = documents
        .into_iter()
        .map(|text| format!("#cloud-config\n{text}"))
        .collect();
    documents.sort();
    documents.dedup();
    documents
}

fn pyyaml(documents: &[String]) -> Vec<Value> {
    let mut python = Command::new(PYTHON)
        .args(["-I", "-c", JUDGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin
        .write_all(json!(documents).to_string().as_bytes())
        .unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let judged: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(judged.len(), documents.len());
    judged
}

fn pyyaml_or_skip() -> bool {
    let there = Command::new(PYTHON)
        .args(["-I", "-c", "import yaml"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    !waifud_kit::testing::skip_if(
        (!there).then(|| "Debian's python3-yaml is not installed".to_owned()),
    )
}

/// A generator, so that every run compares the same documents.
struct Random(random::Random);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.0.below(limit as u64)).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One to three changes: a piece inserted, characters removed or swapped, a line indented, or another document
    /// appended.
    fn changed(&mut self, text: &str) -> String {
        const PIECES: [&str; 40] = [
            " ",
            "  ",
            "\t",
            "\n",
            ":",
            ": ",
            "-",
            "- ",
            "?",
            "? ",
            ",",
            "[",
            "]",
            "{",
            "}",
            "#",
            " #",
            "&x ",
            "*x",
            "!",
            "!!int ",
            "!!str ",
            "|",
            ">",
            "'",
            "\"",
            "%",
            "@",
            "`",
            "<<",
            "=",
            "~",
            "0",
            "1.5",
            "yes",
            "2024-13-01",
            "---\n",
            "...\n",
            "\\",
            "é",
        ];
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(3) {
            let at = self.below(chars.len() + 1);
            match self.below(6) {
                0 | 1 => {
                    let piece = self.pick(&PIECES);
                    chars.splice(at..at, piece.chars());
                }
                2 if at < chars.len() => {
                    chars.remove(at);
                }
                3 if at < chars.len() => chars[at] = self.pick(&PIECES).chars().next().unwrap(),
                4 => {
                    let start = chars[..at]
                        .iter()
                        .rposition(|c| *c == '\n')
                        .map_or(0, |n| n + 1);
                    let indent = self.below(3) + 1;
                    chars.splice(start..start, std::iter::repeat_n(' ', indent));
                }
                _ => chars.extend(self.pick(BY_HAND).chars()),
            }
        }
        chars.into_iter().collect()
    }
}
