//! Generates names for instances that are created without one: an adjective and a role, for example `bold-baker`.

use waifud_types::Name;

use crate::env::{Entropy, below};

const MOODS: [&str; 64] = [
    "airy",
    "ardent",
    "bashful",
    "blithe",
    "bold",
    "bookish",
    "brave",
    "breezy",
    "bubbly",
    "calm",
    "cheery",
    "clever",
    "cosy",
    "curious",
    "daring",
    "deft",
    "dozy",
    "dreamy",
    "earnest",
    "eager",
    "fabled",
    "fond",
    "gallant",
    "gentle",
    "gleeful",
    "graceful",
    "hearty",
    "hopeful",
    "humble",
    "jolly",
    "keen",
    "kindly",
    "lively",
    "loyal",
    "lucky",
    "mellow",
    "merry",
    "mirthful",
    "moonlit",
    "nimble",
    "patient",
    "peachy",
    "perky",
    "playful",
    "plucky",
    "poised",
    "quirky",
    "radiant",
    "rosy",
    "serene",
    "shy",
    "smug",
    "snug",
    "sparkly",
    "spirited",
    "starry",
    "sunny",
    "sweet",
    "tender",
    "tranquil",
    "twinkly",
    "upbeat",
    "whimsical",
    "zesty",
];

const ROLES: [&str; 64] = [
    "alchemist",
    "android",
    "apprentice",
    "archer",
    "archivist",
    "astronaut",
    "baker",
    "bard",
    "botanist",
    "captain",
    "cartographer",
    "catgirl",
    "cellist",
    "champion",
    "chef",
    "classmate",
    "dancer",
    "detective",
    "diva",
    "dragon",
    "duchess",
    "engineer",
    "fencer",
    "florist",
    "foxgirl",
    "gamer",
    "gardener",
    "goddess",
    "healer",
    "heiress",
    "heroine",
    "idol",
    "inventor",
    "kitsune",
    "knight",
    "librarian",
    "magician",
    "maid",
    "mechanic",
    "mermaid",
    "ninja",
    "oracle",
    "painter",
    "pianist",
    "pilot",
    "pirate",
    "poet",
    "princess",
    "ranger",
    "rival",
    "samurai",
    "senpai",
    "shrinemaiden",
    "sorceress",
    "spirit",
    "student",
    "summoner",
    "swordswoman",
    "tactician",
    "tsundere",
    "valkyrie",
    "violinist",
    "witch",
    "wizard",
];

/// A name that is not taken. After a few attempts it gets a number.
pub fn generate<E>(
    entropy: &dyn Entropy,
    mut taken: impl FnMut(&str) -> Result<bool, E>,
) -> Result<Option<Name>, E> {
    for attempt in 0..64 {
        let mood = MOODS.get(below(entropy, MOODS.len())).unwrap_or(&"calm");
        let role = ROLES.get(below(entropy, ROLES.len())).unwrap_or(&"idol");
        let text = if attempt < 8 {
            format!("{mood}-{role}")
        } else {
            format!("{mood}-{role}-{}", below(entropy, 100_000))
        };
        if !taken(&text)?
            && let Ok(name) = text.parse()
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemEntropy;
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    #[test]
    fn every_combination_is_a_valid_name_and_no_word_is_duplicated() {
        assert_eq!(MOODS.iter().collect::<BTreeSet<_>>().len(), MOODS.len());
        assert_eq!(ROLES.iter().collect::<BTreeSet<_>>().len(), ROLES.len());
        for mood in MOODS {
            for role in ROLES {
                assert!(format!("{mood}-{role}-99999").parse::<Name>().is_ok());
            }
        }
    }

    #[test]
    fn taken_names_are_not_generated() {
        let mut seen = BTreeSet::new();
        for _ in 0..5000 {
            let name = generate(&SystemEntropy, |text| {
                Ok::<_, Infallible>(seen.contains(text))
            });
            assert!(seen.insert(name.unwrap().unwrap().to_string()));
        }
    }
}
