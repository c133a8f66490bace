//! Marks the options of ssh among the arguments of `waifuctl ssh`, before clap parses them.
//!
//! ssh has many options, which change. clap gets each of them as `--ssh-option=WORD`, and parses the others.

use std::ffi::{OsStr, OsString};

/// Options of ssh with a value, except `i` and `l`, which waifuctl defines too.
const WITH_VALUE: &str = "BbcDEeFIJLmOoPpQRSWw";
/// Options of waifuctl with a value that can precede the command.
const OURS_WITH_VALUE: [&str; 2] = ["--context", "--socket"];

/// Marks ssh's options. The arguments of other commands are returned unchanged.
pub fn mark(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut marked: Vec<_> = words.next().into_iter().collect();
    let mut value_follows = false;
    for word in words.by_ref() {
        let is_verb = !value_follows && !word.as_encoded_bytes().starts_with(b"-");
        value_follows = OURS_WITH_VALUE.iter().any(|option| word == *option);
        let ends = is_verb || word == "--";
        let is_ssh = is_verb && word == "ssh";
        marked.push(word);
        if is_ssh {
            break;
        }
        if ends {
            marked.extend(words);
            return marked;
        }
    }
    while let Some(word) = words.next() {
        if word == "--" {
            marked.push(word);
            break;
        }
        let Some(letters) = of_ssh(&word) else {
            marked.push(word);
            continue;
        };
        let valued = letters
            .char_indices()
            .find(|(_, c)| WITH_VALUE.contains(*c));
        let needs_value = valued.is_some_and(|(at, c)| at + c.len_utf8() == letters.len());
        marked.push(option(&word));
        if needs_value {
            marked.extend(words.next().as_deref().map(option));
        }
    }
    marked.extend(words);
    marked
}

/// The letters of an option of ssh that waifuctl does not define.
fn of_ssh(word: &OsStr) -> Option<String> {
    let letters = word.to_str()?.strip_prefix('-')?;
    let ours =
        letters.is_empty() || letters.starts_with(['-', 'i', 'l']) || matches!(letters, "q" | "h");
    (!ours).then(|| letters.to_owned())
}

fn option(word: &OsStr) -> OsString {
    let mut option = OsString::from("--ssh-option=");
    option.push(word);
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(line: &str) -> String {
        let words = line.split_whitespace().map(OsString::from);
        let marked = mark(words);
        let words: Vec<_> = marked.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ").replace("--ssh-option=", "@")
    }

    #[test]
    fn options_of_ssh_are_marked_with_their_values() {
        for (line, expected) in [
            ("w ssh web", "w ssh web"),
            ("w ssh -t web", "w ssh @-t web"),
            ("w ssh web -tt -v", "w ssh web @-tt @-v"),
            (
                "w ssh -L 1:h:2 web -R 3:h:4",
                "w ssh @-L @1:h:2 web @-R @3:h:4",
            ),
            ("w ssh -tL 1:h:2 web", "w ssh @-tL @1:h:2 web"),
            ("w ssh -oA=b -o C=d web", "w ssh @-oA=b @-o @C=d web"),
            ("w ssh web -L", "w ssh web @-L"),
        ] {
            assert_eq!(marked(line), expected);
        }
    }

    #[test]
    fn options_of_waifuctl_and_of_the_program_are_unchanged() {
        for line in [
            "w ssh -i key -l ana -q -h --accept-new-key --json web",
            "w ssh web -- ls -la -t",
            "w --context ssh list -t x",
            "w list -t x",
            "w create ssh -t x",
            "w -- ssh -t",
            "w",
        ] {
            assert_eq!(marked(line), line);
        }
        assert_eq!(
            marked("w --context ssh -q ssh -t web"),
            "w --context ssh -q ssh @-t web"
        );
    }
}
