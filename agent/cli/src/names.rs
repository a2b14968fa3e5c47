//! What somebody may have meant who named what is not there.

use std::collections::BTreeSet;

const OFFERED_MAX: usize = 3;

/// The known names most like `wanted`, best first, at most three; none where nothing is like it.
pub fn near<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let close = (wanted.chars().count() / 3).max(1);
    let known: BTreeSet<&str> = known.into_iter().collect();
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (distance(wanted, name), name))
        .filter(|(far, name)| *far <= close || (wanted.len() >= 3 && name.contains(wanted)))
        .collect();
    found.sort();
    found.into_iter().take(OFFERED_MAX).map(|(_, name)| name).collect()
}

/// How many letters must be put in, taken out, exchanged, or swapped with their neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = match (i, j) {
                (0, _) | (_, 0) => i + j,
                _ => {
                    let exchanged = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = exchanged.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(table[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_near() {
        let known = ["web", "web-canary", "kube-dns", "kubernetes", "api"];
        assert_eq!(near("wbe", known), ["web"]);
        assert_eq!(near("kubernets", known), ["kubernetes"]);
        assert_eq!(near("canary", known), ["web-canary"]);
        assert_eq!(near("postgres", known), Vec::<&str>::new());
    }
}
