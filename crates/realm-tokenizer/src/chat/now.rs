use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment for `strftime_now`, to the second: a date of the Gregorian calendar and a time of day.
///
/// Templates print it as it stands, whatever the time zone. [`Now::clock`] gives UTC: the standard
/// library does not know the local zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    days: i64,
    seconds: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const DAY: i64 = 86_400;

impl Now {
    /// The computer's clock, in UTC.
    pub fn clock() -> Self {
        let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        Self::from_unix(seconds)
    }

    /// The moment that many seconds after 1970-01-01 00:00 UTC, kept between the years 1 and 9999.
    pub fn from_unix(seconds: i64) -> Self {
        let seconds =
            seconds.clamp(days_from_civil(1, 1, 1) * DAY, days_from_civil(10_000, 1, 1) * DAY - 1);
        Self { days: seconds.div_euclid(DAY), seconds: seconds.rem_euclid(DAY) as u32 }
    }

    /// A date and time as a clock shows them; `None` where there is no such moment.
    ///
    /// Years are 1 to 9999, months and days count from 1.
    pub fn new(
        year: u32,
        month: u32,
        day: u32,
        hour: u32,
        minute: u32,
        second: u32,
    ) -> Option<Self> {
        let sound =
            (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        if !sound || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = days_from_civil(i64::from(year), month, day);
        let now = Self { days, seconds: hour * 3600 + minute * 60 + second };
        (now.civil() == (i64::from(year), month, day)).then_some(now)
    }

    /// Year, month (1 to 12) and day (1 to 31).
    fn civil(self) -> (i64, u32, u32) {
        civil_from_days(self.days)
    }

    /// Monday is 0.
    fn weekday(self) -> usize {
        // 1970-01-01 was a Thursday.
        (self.days + 3).rem_euclid(7) as usize
    }

    /// Writes the moment as C's `strftime` does in the C locale.
    ///
    /// Known: `%a %A %b %B %c %d %D %e %f %F %g %G %h %H %I %j %k %l %m %M %n %p %P %r %R %s %S %t
    /// %T %u %U %V %w %W %x %X %y %Y %z %Z %%`, with `-` after the `%` for no padding; the zone is
    /// empty, as for Python's naive `datetime`. An unknown directive stays as it is, as in glibc.
    pub fn strftime(self, format: &str) -> String {
        let mut out = String::with_capacity(format.len() * 2);
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let (bare, directive) = match after.strip_prefix('-') {
                Some(after) => (true, after.chars().next()),
                None => (false, after.chars().next()),
            };
            let len = 1 + usize::from(bare) + directive.map_or(0, char::len_utf8);
            match directive.and_then(|directive| self.directive(directive)) {
                Some(text) if bare => {
                    let short = text.trim_start_matches(['0', ' ']);
                    out.push_str(if short.is_empty() { &text[text.len() - 1..] } else { short });
                }
                Some(text) => out.push_str(&text),
                None => out.push_str(&rest[at..at + len]),
            }
            rest = &rest[at + len..];
        }
        out + rest
    }

    fn directive(self, directive: char) -> Option<String> {
        let (year, month, day) = self.civil();
        let (hour, minute, second) =
            (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let month_name = MONTHS[month as usize - 1];
        let weekday = self.weekday();
        let day_of_year = self.days - days_from_civil(year, 1, 1) + 1;
        let mut out = String::new();
        match directive {
            'a' => out.push_str(&WEEKDAYS[weekday][..3]),
            'A' => out.push_str(WEEKDAYS[weekday]),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'B' => out.push_str(month_name),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'P' => out.push_str(if hour < 12 { "am" } else { "pm" }),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            '%' => out.push('%'),
            'z' | 'Z' => {}
            'c' => out = self.strftime("%a %b %e %H:%M:%S %Y"),
            'D' | 'x' => out = self.strftime("%m/%d/%y"),
            'F' => out = self.strftime("%Y-%m-%d"),
            'r' => out = self.strftime("%I:%M:%S %p"),
            'R' => out = self.strftime("%H:%M"),
            'T' | 'X' => out = self.strftime("%H:%M:%S"),
            'e' => write!(out, "{day:2}").ok()?,
            'k' => write!(out, "{hour:2}").ok()?,
            'l' => write!(out, "{hour12:2}").ok()?,
            'd' => write!(out, "{day:02}").ok()?,
            'H' => write!(out, "{hour:02}").ok()?,
            'I' => write!(out, "{hour12:02}").ok()?,
            'M' => write!(out, "{minute:02}").ok()?,
            'S' => write!(out, "{second:02}").ok()?,
            'f' => out.push_str("000000"),
            'm' => write!(out, "{month:02}").ok()?,
            'j' => write!(out, "{day_of_year:03}").ok()?,
            's' => write!(out, "{}", self.days * DAY + i64::from(self.seconds)).ok()?,
            'u' => write!(out, "{}", weekday + 1).ok()?,
            'w' => write!(out, "{}", (weekday + 1) % 7).ok()?,
            'U' => write!(out, "{:02}", (day_of_year + 6 - (weekday as i64 + 1) % 7) / 7).ok()?,
            'W' => write!(out, "{:02}", (day_of_year + 6 - weekday as i64) / 7).ok()?,
            'V' => write!(out, "{:02}", self.iso_week().1).ok()?,
            'G' => write!(out, "{}", self.iso_week().0).ok()?,
            'g' => write!(out, "{:02}", self.iso_week().0 % 100).ok()?,
            'y' => write!(out, "{:02}", year % 100).ok()?,
            'Y' => write!(out, "{year}").ok()?,
            _ => return None,
        }
        Some(out)
    }

    /// The year and week of ISO 8601: those of the Thursday of the same week.
    fn iso_week(self) -> (i64, i64) {
        let thursday = self.days - self.weekday() as i64 + 3;
        let year = civil_from_days(thursday).0;
        (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
///
/// Years begin in March here, so that the leap day is the last: a month then begins
/// (153 m + 2) / 5 days into the year, and 400 years have 146,097 days.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = i64::from((month + 9) % 12);
    let of_year = (153 * from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_from_civil`]: year, month and day.
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    (year, month as u32, day as u32)
}
