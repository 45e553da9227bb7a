//! Durations as people write them (`25s`, `1h30m`) and ages as kubectl shows them.
use std::time::Duration;

/// Longest duration that is taken.
pub const MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a duration; write for example 500ms, 25s, 1h30m or 7d (at most ten years)")]
pub struct DurationError(String);

/// Reads a duration: numbers with the units d, h, m, s and ms, largest first or not.
///
/// # Errors
/// When the text is empty, has another form, or means more than [`MAX`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    total(text)
        .filter(|total| *total <= MAX)
        .ok_or_else(|| DurationError(text.chars().take(40).collect()))
}

fn total(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let length = unit
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(unit.len());
        let (unit, after) = unit.split_at(length);
        total = total.checked_add(scaled(number.parse().ok()?, unit)?)?;
        rest = after;
    }
    Some(total)
}

fn scaled(number: u64, unit: &str) -> Option<Duration> {
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// The duration in the form that [`parse`] reads.
pub fn written(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// An age in two units at most, finer while young (as kubectl does).
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |large: u64, unit: &str, small: u64, rest: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{rest}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => with(hours, "h", minutes % 60, "m"),
        () if days < 2 => format!("{hours}h"),
        () if days < 8 => with(days, "d", hours % 24, "h"),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text| parse(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("25s"), Ok(25));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0s"), Ok(0));
    }

    #[test]
    fn other_texts_are_not_durations() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1 s",
            "1y",
            "1.5s",
            "99999999999999999999s",
            "4000d1d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_short() {
        let shown = |seconds| age(Duration::from_secs(seconds));
        let ages = [
            0,
            119,
            150,
            600,
            3 * 3600,
            4 * 3600 + 120,
            47 * 3600,
            3 * 86_400,
            30 * 86_400,
        ];
        let expected = [
            "0s", "119s", "2m30s", "10m", "3h", "4h2m", "47h", "3d", "30d",
        ];
        assert_eq!(ages.map(shown), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis in 0..1_000_000_000_u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&written(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9dhms]{0,30}") {
            let _ = parse(&text);
        }
    }
}
