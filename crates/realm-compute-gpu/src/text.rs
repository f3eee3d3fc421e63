//! Figures for people.

/// A size for people: `79.1 GiB`, and below one GiB `128 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const MIB: f64 = (1u64 << 20) as f64;
    const GIB: f64 = (1u64 << 30) as f64;
    let bytes = bytes as f64;
    if bytes < GIB { format!("{:.0} MiB", bytes / MIB) } else { format!("{:.1} GiB", bytes / GIB) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        let cases = [
            (0, "0 MiB"),
            (128 << 20, "128 MiB"),
            ((1 << 31) - 1, "2.0 GiB"),
            (80 << 30, "80.0 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(super::size(bytes), text);
        }
    }
}
