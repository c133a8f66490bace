//! The known name that somebody may have meant.

/// The name that is fewest changes away from `typed`, when these are at most a third of its letters (two at least).
pub fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let most = (typed.chars().count() / 3).max(2);
    known
        .iter()
        .map(|name| (distance(typed, name), *name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance, in letters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((other, above), before) in b.iter().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or_default();
            let changed = before + usize::from(letter != *other);
            next.push(changed.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        let known = ["memory", "cpus", "user_data", "user_data_file"];
        assert_eq!(nearest("memroy", &known), Some("memory"));
        assert_eq!(nearest("cpu", &known), Some("cpus"));
        assert_eq!(nearest("userdata", &known), Some("user_data"));
        assert_eq!(nearest("colour", &known), None);
    }

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
