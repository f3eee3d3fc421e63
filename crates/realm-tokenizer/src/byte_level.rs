//! GPT-2's alphabet: each byte stands as one printable character.
//!
//! Source: `bytes_to_unicode` of OpenAI's GPT-2 encoder, described in the GPT-2 paper's section on
//! input representation. Printable Latin-1 stands for itself; the other 68 bytes, in order, become
//! U+0100 and up (the space becomes `Ġ`).

/// One past the last character of the alphabet.
const END: usize = 256 + 68;

/// Both directions of the alphabet.
#[derive(Debug)]
pub(crate) struct ByteAlphabet {
    chars: [char; 256],
    bytes: [Option<u8>; END],
}

impl ByteAlphabet {
    pub(crate) fn new() -> Self {
        let mut chars = ['\0'; 256];
        let mut bytes = [None; END];
        let mut spare = 256u32;
        for byte in 0..=255u8 {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable {
                u32::from(byte)
            } else {
                spare += 1;
                spare - 1
            };
            chars[usize::from(byte)] = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            bytes[code as usize] = Some(byte);
        }
        Self { chars, bytes }
    }

    /// The character that stands for `byte`.
    pub(crate) fn char(&self, byte: u8) -> char {
        self.chars[usize::from(byte)]
    }

    /// The byte that `c` stands for; `None` where `c` is not in the alphabet.
    pub(crate) fn byte(&self, c: char) -> Option<u8> {
        self.bytes.get(c as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_bijection_of_printable_characters() {
        let alphabet = ByteAlphabet::new();
        for byte in 0..=255 {
            let c = alphabet.char(byte);
            assert_eq!(alphabet.byte(c), Some(byte));
            assert!(!c.is_whitespace() && !c.is_control());
        }
        assert_eq!(
            (0..0x2000).filter_map(char::from_u32).filter_map(|c| alphabet.byte(c)).count(),
            256
        );
    }

    #[test]
    fn known_characters() {
        let alphabet = ByteAlphabet::new();
        for (byte, c) in
            [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'a', 'a'), (0x00, 'Ā'), (0xAD, 'Ń'), (0xFF, 'ÿ')]
        {
            assert_eq!(alphabet.char(byte), c);
        }
        assert_eq!(alphabet.byte(' '), None);
        assert_eq!(alphabet.byte('▁'), None);
    }
}
