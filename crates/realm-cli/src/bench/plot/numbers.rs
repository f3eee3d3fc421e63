//! Numbers on axes and in labels.

/// A tick's number on the axis of intensities.
pub(super) fn plain(value: f64) -> String {
    if value >= 0.999 {
        return format!("{value:.0}");
    }
    format!("{value:.4}").trim_end_matches('0').into()
}

/// A tick's number on the axis of speeds: `100 G`.
pub(super) fn tick(value: f64) -> String {
    let (short, letter) = scaled(value);
    format!("{} {letter}", plain(short))
}

/// A number with the letter of its power of a thousand, to stand before a unit: `57.0 G`.
pub(super) fn si(value: f64) -> String {
    let (short, letter) = scaled(value);
    let digits = match short {
        99.95.. => 0,
        9.995.. => 1,
        _ => 2,
    };
    format!("{short:.digits$} {letter}")
}

fn scaled(value: f64) -> (f64, &'static str) {
    // What rounds to a thousand of a letter is one of the next.
    match value * 1.0005 {
        1e15.. => (value / 1e15, "P"),
        1e12.. => (value / 1e12, "T"),
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let said: Vec<String> = [1.0, 57e9, 999.96e9, 2.216e12, 123e6, 1500.0].map(si).into();
        assert_eq!(said, ["1.00 ", "57.0 G", "1.00 T", "2.22 T", "123 M", "1.50 k"]);
        let ticks: Vec<String> = [1e8, 1e12, 1e3].map(tick).into();
        assert_eq!(ticks, ["100 M", "1 T", "1 k"]);
        assert_eq!([0.01, 0.1, 1.0, 1000.0].map(plain), ["0.01", "0.1", "1", "1000"]);
    }
}
