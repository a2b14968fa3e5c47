//! Source text to tokens.

use std::sync::Arc;

use super::unescape;
use crate::error::Issues;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Identifier(Arc<str>),
    Int(String),
    Uint(String),
    Double(String),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    True,
    False,
    Null,
    In,
    /// An operator or bracket.
    Symbol(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Lexeme {
    pub token: Token,
    pub start: usize,
    pub end: usize,
}

/// Longest first.
const SYMBOLS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%", "<", ">", "=", "&", "|",
];

/// Tokens of a source; what is no token is reported and left out.
pub(super) fn tokens(source: &str, issues: &mut Issues) -> Vec<Lexeme> {
    let mut lexer = Lexer { source, bytes: source.as_bytes(), at: 0 };
    let mut lexemes = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        if start >= source.len() {
            lexemes.push(Lexeme { token: Token::End, start, end: start });
            return lexemes;
        }
        match lexer.next(issues) {
            Some(token) => lexemes.push(Lexeme { token, start, end: lexer.at }),
            None => {
                let end = lexer.at.max(start + 1);
                let end =
                    (end..=source.len()).find(|at| source.is_char_boundary(*at)).unwrap_or(source.len());
                lexer.at = end;
                let text = &source[start..end];
                issues.report(Some(start), format!("Syntax error: token recognition error at: '{text}'"));
            }
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    bytes: &'s [u8],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) {
        loop {
            while matches!(self.peek(0), b' ' | b'\t' | b'\n' | b'\r' | 0x0c) {
                self.at += 1;
            }
            if !self.source[self.at..].starts_with("//") {
                return;
            }
            self.at = self.source[self.at..].find('\n').map_or(self.source.len(), |line| self.at + line);
        }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) {
        while self.at < self.bytes.len() && accept(self.bytes[self.at]) {
            self.at += 1;
        }
    }

    fn next(&mut self, issues: &mut Issues) -> Option<Token> {
        let (raw, bytes) = self.literal_prefix();
        let prefix = usize::from(raw) + usize::from(bytes);
        if matches!(self.peek(prefix), b'"' | b'\'') {
            return self.quoted(prefix, raw, bytes, issues);
        }
        let first = self.peek(0);
        if first.is_ascii_digit() || (first == b'.' && self.peek(1).is_ascii_digit()) {
            return Some(self.number());
        }
        if first == b'_' || first.is_ascii_alphabetic() {
            let start = self.at;
            self.take_while(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
            return Some(match &self.source[start..self.at] {
                "true" => Token::True,
                "false" => Token::False,
                "null" => Token::Null,
                "in" => Token::In,
                name => Token::Identifier(name.into()),
            });
        }
        let rest = &self.source[self.at..];
        let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol))?;
        if matches!(*symbol, "=" | "&" | "|") {
            return None;
        }
        self.at += symbol.len();
        Some(Token::Symbol(symbol))
    }

    /// Whether a literal begins with `r` or `b` or `br`.
    fn literal_prefix(&self) -> (bool, bool) {
        let bytes = matches!(self.peek(0), b'b' | b'B');
        let raw = matches!(self.peek(usize::from(bytes)), b'r' | b'R');
        (raw, bytes)
    }

    fn number(&mut self) -> Token {
        let start = self.at;
        if self.peek(0) == b'0' && self.peek(1) == b'x' && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            self.take_while(|byte| byte.is_ascii_hexdigit());
            return self.whole(start);
        }
        self.take_while(|byte| byte.is_ascii_digit());
        let mut double = false;
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            double = true;
            self.at += 1;
            self.take_while(|byte| byte.is_ascii_digit());
        }
        let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
        if matches!(self.peek(0), b'e' | b'E') && self.peek(1 + sign).is_ascii_digit() {
            double = true;
            self.at += 1 + sign;
            self.take_while(|byte| byte.is_ascii_digit());
        }
        if double { Token::Double(self.source[start..self.at].to_owned()) } else { self.whole(start) }
    }

    fn whole(&mut self, start: usize) -> Token {
        let text = self.source[start..self.at].to_owned();
        if matches!(self.peek(0), b'u' | b'U') {
            self.at += 1;
            return Token::Uint(text);
        }
        Token::Int(text)
    }

    fn quoted(&mut self, prefix: usize, raw: bool, bytes: bool, issues: &mut Issues) -> Option<Token> {
        let start = self.at;
        let quote = self.peek(prefix);
        let triple = self.peek(prefix + 1) == quote && self.peek(prefix + 2) == quote;
        let marks = if triple { 3 } else { 1 };
        self.at += prefix + marks;
        let content = self.at;
        loop {
            let byte = *self.bytes.get(self.at)?;
            let closes = (0..marks).all(|ahead| self.peek(ahead) == quote);
            if closes {
                break;
            }
            match byte {
                b'\\' if !raw => self.at += 2,
                b'\n' | b'\r' if !triple => return None,
                _ => self.at += 1,
            }
        }
        let text = self.source.get(content..self.at)?;
        self.at += marks;
        Some(match unescape::unescape(text, raw, bytes) {
            Ok(value) if bytes => Token::Bytes(value.into()),
            Ok(value) => Token::String(String::from_utf8_lossy(&value).into()),
            Err(message) => {
                issues.report(Some(start), message);
                Token::String("".into())
            }
        })
    }
}
