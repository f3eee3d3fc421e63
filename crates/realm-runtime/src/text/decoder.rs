//! One sequence's tokens as text, up to a stop string.

use std::sync::Arc;

use realm_tokenizer::{DecodeOptions, DecodeStream, Tokenizer};

/// Turns a sequence's tokens into text as they come. Text that may be the start of a stop string is held
/// back until that is decided, so that no part of one is ever given out.
pub struct TextDecoder {
    /// `None` where there is no vocabulary: then there is no text.
    stream: Option<DecodeStream<Arc<Tokenizer>>>,
    stops: Vec<String>,
    /// Text that may be the start of a stop string.
    held: String,
    stopped: bool,
}

impl TextDecoder {
    /// A decoder for text that goes on from a prompt. Empty stop strings are never found.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, stops: &[String]) -> Self {
        let how = DecodeOptions { special: false, continuation: true };
        let stream = tokenizer.map(|tokenizer| DecodeStream::new(tokenizer, how));
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stream, stops, held: String::new(), stopped: false }
    }

    /// Whether a stop string was found. What follows it is not given out.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token and gives the text that is now certain, which may be empty. An id beyond the
    /// vocabulary has no text: models with padded vocabularies know such ids.
    pub fn push(&mut self, token: u32) -> String {
        let text = self.stream.as_mut().and_then(|stream| stream.push(token).ok());
        self.held.push_str(text.unwrap_or_default());
        self.take_certain()
    }

    /// Ends the text and gives what is left of it.
    pub fn finish(&mut self) -> String {
        let text = self.stream.as_mut().map(DecodeStream::finish);
        self.held.push_str(text.unwrap_or_default());
        let mut text = self.take_certain();
        text.push_str(&self.take_held());
        text
    }

    /// What is held back, where the text ends before the model or its user meant it to; half a character
    /// is left out.
    pub fn take_held(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn take_certain(&mut self) -> String {
        if self.stopped {
            self.held.clear();
            return String::new();
        }
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let certain = self.stops.iter().map(|stop| certain(&self.held, stop)).min();
        let rest = self.held.split_off(certain.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes of `text` that can belong to no occurrence of `stop`, of which it holds none as a whole.
fn certain(text: &str, stop: &str) -> usize {
    let first = (text.len() + 1).saturating_sub(stop.len());
    let starts = (first..text.len()).filter(|&at| text.is_char_boundary(at));
    starts.into_iter().find(|&at| stop.starts_with(&text[at..])).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(stops: &[&str]) -> TextDecoder {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        TextDecoder::new(None, &stops)
    }

    /// The pieces that come of pushing texts.
    fn pieces(stops: &[&str], texts: &[&str]) -> (Vec<String>, bool) {
        let mut decoder = decoder(stops);
        let mut pieces = Vec::new();
        for text in texts {
            decoder.held.push_str(text);
            pieces.push(decoder.take_certain());
        }
        pieces.push(decoder.finish());
        (pieces, decoder.stopped())
    }

    #[test]
    fn the_start_of_a_stop_string_is_held_back() {
        let (found, stopped) = pieces(&["STOP"], &["a S", "T", "ill, ST", "OP", " more"]);
        assert_eq!(found, ["a ", "", "STill, ", "", "", ""]);
        assert!(stopped);
        let (found, stopped) = pieces(&["STOP"], &["a STO"]);
        assert_eq!((found.concat().as_str(), stopped), ("a STO", false));
    }

    #[test]
    fn the_first_stop_string_counts() {
        let (found, _) = pieces(&["world", "lo w"], &["hel", "lo wor", "ld"]);
        assert_eq!(found.concat(), "hel");
        // A repeated start: the second occurrence of `a` begins the stop string.
        let (found, stopped) = pieces(&["aab"], &["a", "a", "a", "b"]);
        assert_eq!((found.concat().as_str(), stopped), ("a", true));
    }

    #[test]
    fn characters_are_never_cut() {
        let (found, stopped) = pieces(&["é!"], &["caf", "é", " é", "!"]);
        assert_eq!((found.concat().as_str(), stopped), ("café ", true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        assert_eq!(pieces(&[], &["a", "b"]).0, ["a", "b", ""]);
        assert_eq!(pieces(&[""], &["a", "b"]).0, ["a", "b", ""]);
    }

    /// Every way to cut a text gives the text up to the first stop string.
    #[test]
    fn cuts_do_not_matter() {
        let text = "ababcab€abc€d";
        let stops = ["bc€", "€d"];
        let expected = "ababcab€a";
        let at: Vec<usize> = (1..text.len()).filter(|&at| text.is_char_boundary(at)).collect();
        for mask in 0..1u32 << at.len() {
            let mut parts = Vec::new();
            let mut from = 0;
            for (bit, &at) in at.iter().enumerate() {
                if mask >> bit & 1 == 1 {
                    parts.push(&text[from..at]);
                    from = at;
                }
            }
            parts.push(&text[from..]);
            let (found, stopped) = pieces(&stops, &parts);
            assert_eq!((found.concat().as_str(), stopped), (expected, true), "{parts:?}");
        }
    }
}
