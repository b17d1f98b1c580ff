//! The literals of protocol 0, which is a text format.

/// A decimal integer of 64 bits.
pub fn decimal(line: &[u8]) -> Option<i64> {
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// A Python string literal in quotes, with the escapes that `repr` writes.
pub fn byte_literal(line: &[u8]) -> Option<Vec<u8>> {
    let (&quote, rest) = line.trim_ascii().split_first()?;
    let body = rest.strip_suffix(&[quote]).filter(|_| quote == b'\'' || quote == b'"')?;
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'x' => {
                let digits = [rest.next()?, rest.next()?];
                u8::try_from(hexadecimal(&digits)?).ok()?
            }
            same @ (b'\\' | b'\'' | b'"') => same,
            _ => return None,
        });
    }
    Some(bytes)
}

/// Python's raw-unicode-escape: Latin-1 with `\uXXXX` and `\UXXXXXXXX`; any other backslash is itself.
pub fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = match (byte, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(byte));
                rest = after;
                continue;
            }
        };
        text.push(char::from_u32(hexadecimal(after.get(1..=digits)?)?)?);
        rest = after.get(1 + digits..)?;
    }
    Some(text)
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, &digit| Some((value << 4) | char::from(digit).to_digit(16)?))
}

/// The start of `bytes`, safe to print.
pub fn show(bytes: &[u8]) -> String {
    bytes.iter().take(60).flat_map(|&byte| std::ascii::escape_default(byte)).map(char::from).collect()
}
