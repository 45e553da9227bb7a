//! Names as Kubernetes allows them, and the nearest known name to a misspelt one.
/// A form of names (RFC 1123, as Kubernetes applies it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Up to 63 lower-case letters, digits and `-`.
    Label,
    /// Labels joined by dots, up to 253 characters.
    Subdomain,
    /// A [`Form::Subdomain`], whose first label may be `*`.
    Host,
}

impl Form {
    /// Whether `name` has this form.
    pub fn accepts(self, name: &str) -> bool {
        match self {
            Self::Label => is_label(name),
            Self::Subdomain => is_subdomain(name),
            Self::Host => is_subdomain(name.strip_prefix("*.").unwrap_or(name)),
        }
    }

    /// What a name of this form is called.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Label | Self::Subdomain => "a valid name",
            Self::Host => "a valid host name",
        }
    }

    /// How to write one.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Label => "use up to 63 lower-case letters, digits and '-' (RFC 1123)",
            Self::Subdomain | Self::Host => {
                "use up to 253 lower-case letters, digits, '-' and '.' (RFC 1123)"
            }
        }
    }
}

fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_subdomain(name: &str) -> bool {
    // Kubernetes bounds the whole of an object's name, not its labels.
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_part)
}

/// A port written in digits.
pub fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

/// The known name that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // Longer words bear more slips; short ones would match anything.
    let allowed = (name.len() / 3).clamp(1, 3);
    let name: Vec<char> = name.chars().take(64).flat_map(char::to_lowercase).collect();
    let scored = known
        .iter()
        .map(|candidate| (distance(&name, candidate), *candidate));
    scored
        .filter(|(score, _)| *score <= allowed)
        .min_by_key(|(score, _)| *score)
        .map(|(_, found)| found)
}

/// Edits from one word to the other, swapped neighbours being one, upper and lower case being equal.
fn distance(name: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (line, theirs) in candidate.iter().enumerate() {
        let mut next = vec![line + 1];
        for (column, ours) in name.iter().enumerate() {
            let substituted = row[column] + usize::from(ours != theirs);
            let mut best = substituted.min(row[column + 1] + 1).min(next[column] + 1);
            let swapped = line > 0
                && column > 0
                && candidate[line - 1] == *ours
                && name[column - 1] == *theirs;
            if swapped {
                best = best.min(above[column - 1] + 1);
            }
            next.push(best);
        }
        above = std::mem::replace(&mut row, next);
    }
    row[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_of_kubernetes_only() {
        assert!(Form::Subdomain.accepts("web-1.shop"));
        assert!(Form::Label.accepts("web-1"));
        assert!(Form::Host.accepts("*.example.com"));
        for bad in ["", "Web", "web_1", "-web", "web-", "a..b", "a/b", "*"] {
            assert!(!Form::Subdomain.accepts(bad), "{bad}");
        }
        assert!(!Form::Label.accepts("a.b"));
        assert!(!Form::Label.accepts(&"a".repeat(64)));
    }

    #[test]
    fn ports_are_digits_in_range() {
        assert_eq!(port("80"), Some(80));
        for bad in ["", "0", "65536", "+80", "80 ", "http"] {
            assert_eq!(port(bad), None, "{bad}");
        }
    }

    #[test]
    fn guesses_the_word_that_was_meant() {
        let known = ["principals", "notPrincipals", "namespaces", "ports"];
        assert_eq!(nearest("princpals", &known), Some("principals"));
        assert_eq!(nearest("notprincipals", &known), Some("notPrincipals"));
        assert_eq!(nearest("port", &known), Some("ports"));
        assert_eq!(nearest("Pdo", &["Node", "Pod"]), Some("Pod"));
        assert_eq!(nearest("colour", &known), None);
    }
}
