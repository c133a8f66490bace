//! Suggests a known name for a misspelled one.

/// Returns the known name with the smallest Levenshtein distance from `typed`, if that is at most a third of its letters
/// (at least two).
pub fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let most = (typed.chars().count() / 3).max(2);
    known
        .iter()
        .map(|name| (strsim::levenshtein(typed, name), *name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_name_is_recognized_and_another_word_is_not() {
        let known = ["memory", "cpus", "user_data", "user_data_file"];
        assert_eq!(nearest("memroy", &known), Some("memory"));
        assert_eq!(nearest("cpu", &known), Some("cpus"));
        assert_eq!(nearest("userdata", &known), Some("user_data"));
        assert_eq!(nearest("colour", &known), None);
    }

    #[test]
    fn a_suggestion_differs_in_at_most_a_third_of_the_letters() {
        assert_eq!(nearest("sitten", &["sitting"]), Some("sitting"));
        assert_eq!(nearest("kitten", &["sitting"]), None);
        assert_eq!(nearest("same", &["same", "some"]), Some("same"));
        assert_eq!(nearest("", &["abc"]), None);
    }
}
