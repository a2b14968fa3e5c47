//! Tokens to an [`Ast`]: precedence climbing over the grammar of the CEL specification, macros expanded on the way.
//!
//! Bounds: 100,000 characters of source, 250 levels of nesting, [`NODES_MAX`] nodes. The first syntax error ends parsing.

mod lexer;
mod macros;
mod unescape;

use lexer::{Lexeme, Token};

use crate::{
    ast::{Ast, Element, Entry, Field, Id, Kind, Literal, NODES_MAX},
    error::Issues,
    types::Name,
};

/// Characters of one expression.
const SOURCE_MAX: usize = 100_000;
const DEPTH_MAX: usize = 250;
/// Levels of the tree, macros expanded: what checking and evaluation may recurse.
const HEIGHT_MAX: usize = 400;
/// Words that can be no identifier.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const EXPRESSION_STARTS: &str = "'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
/// What may follow an operand.
const CONTINUATIONS: &str =
    "'==', '!=', 'in', '<', '<=', '>=', '>', '&&', '||', '[', '.', '-', '?', '+', '*', '/', '%'";

/// Reads an expression.
///
/// # Errors
/// All lexical errors and the first syntax error, or every misused macro.
pub(crate) fn parse(source: &str) -> Result<Ast, Issues> {
    let mut issues = Issues::new(source);
    let size = source.chars().count();
    if size > SOURCE_MAX {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {SOURCE_MAX}");
        issues.report(None, message);
        return Err(issues);
    }
    let tokens = lexer::tokens(source, &mut issues);
    let mut parser = Parser { source, tokens, at: 0, ast: Ast::default(), issues, depth: 0 };
    if let Ok(root) = parser.expression().and_then(|root| parser.end().map(|()| root)) {
        parser.ast.root = root;
    }
    if parser.issues.is_empty() { Ok(parser.ast) } else { Err(parser.issues.sorted()) }
}

/// A syntax error was reported; parsing ends.
struct Stop;

type Parsed<T = Id> = Result<T, Stop>;

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Lexeme>,
    at: usize,
    ast: Ast,
    issues: Issues,
    depth: usize,
}

/// Binary operators by precedence, lowest first; chains of `&&` and `||` are handled apart.
const LEVELS: [&[(&str, &str)]; 3] = [
    &[
        ("<", "_<_"),
        ("<=", "_<=_"),
        (">=", "_>=_"),
        (">", "_>_"),
        ("==", "_==_"),
        ("!=", "_!=_"),
        ("in", "@in"),
    ],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];

impl Parser<'_> {
    fn current(&self) -> &Lexeme {
        &self.tokens[self.at]
    }

    fn offset(&self) -> usize {
        self.current().start
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.current().token, Token::Symbol(found) if found == symbol)
    }

    fn advance(&mut self) -> Lexeme {
        let lexeme = self.current().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        lexeme
    }

    fn accept(&mut self, symbol: &str) -> Option<usize> {
        self.is(symbol).then(|| self.advance().start)
    }

    fn text(&self) -> &str {
        let lexeme = self.current();
        if lexeme.token == Token::End { "<EOF>" } else { &self.source[lexeme.start..lexeme.end] }
    }

    fn unexpected<T>(&mut self, expecting: &str) -> Parsed<T> {
        let message = format!("Syntax error: mismatched input '{}' expecting {expecting}", self.text());
        self.stop(Some(self.offset()), message)
    }

    fn stop<T>(&mut self, offset: Option<usize>, message: impl Into<String>) -> Parsed<T> {
        self.issues.report(offset, message);
        Err(Stop)
    }

    fn end(&mut self) -> Parsed<()> {
        if self.current().token == Token::End {
            return Ok(());
        }
        let message = format!("Syntax error: extraneous input '{}' expecting <EOF>", self.text());
        self.stop(Some(self.offset()), message)
    }

    fn close(&mut self, symbol: &'static str) -> Parsed<()> {
        if self.accept(symbol).is_some() {
            return Ok(());
        }
        self.unexpected(&format!("{{{CONTINUATIONS}, '{symbol}'}}"))
    }

    fn push(&mut self, kind: Kind, offset: usize) -> Parsed {
        if self.ast.nodes.len() >= NODES_MAX {
            return self.stop(None, format!("expression node count exceeds limit: {NODES_MAX}"));
        }
        let id = self.ast.push(kind, offset);
        if self.ast.height(id) > HEIGHT_MAX {
            return self.stop(None, format!("expression recursion limit exceeded: {DEPTH_MAX}"));
        }
        Ok(id)
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.stop(None, format!("expression recursion limit exceeded: {DEPTH_MAX}"));
        }
        Ok(())
    }

    fn call(&mut self, function: &str, args: Vec<Id>, offset: usize) -> Parsed {
        self.push(Kind::Call { function: function.into(), target: None, args }, offset)
    }

    fn expression(&mut self) -> Parsed {
        self.deeper()?;
        let condition = self.chain("||", "_||_")?;
        let result = match self.accept("?") {
            None => condition,
            Some(offset) => {
                let then = self.chain("||", "_||_")?;
                if self.accept(":").is_none() {
                    return self.unexpected(&format!("{{{CONTINUATIONS}, ':'}}"));
                }
                let otherwise = self.expression()?;
                self.call("_?:_", vec![condition, then, otherwise], offset)?
            }
        };
        self.depth -= 1;
        Ok(result)
    }

    /// `a || b || c` and, below it, `a && b && c`, each as one node.
    fn chain(&mut self, symbol: &str, function: &str) -> Parsed {
        let first = self.link(symbol)?;
        let Some(offset) = self.accept(symbol) else { return Ok(first) };
        let mut terms = vec![first, self.link(symbol)?];
        while self.accept(symbol).is_some() {
            terms.push(self.link(symbol)?);
        }
        self.call(function, terms, offset)
    }

    fn link(&mut self, symbol: &str) -> Parsed {
        if symbol == "||" { self.chain("&&", "_&&_") } else { self.binary(0) }
    }

    fn operator(&self, level: usize) -> Option<&'static str> {
        let text = match &self.current().token {
            Token::Symbol(symbol) => symbol,
            Token::In => "in",
            _ => return None,
        };
        LEVELS[level].iter().find(|(symbol, _)| *symbol == text).map(|(_, function)| *function)
    }

    fn binary(&mut self, level: usize) -> Parsed {
        let next = |parser: &mut Self| {
            if level + 1 < LEVELS.len() { parser.binary(level + 1) } else { parser.unary() }
        };
        let mut left = next(self)?;
        let mut links = 0;
        while let Some(function) = self.operator(level) {
            self.deeper()?;
            links += 1;
            let offset = self.advance().start;
            let right = next(self)?;
            left = self.call(function, vec![left, right], offset)?;
        }
        self.depth -= links;
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        for (symbol, function) in [("!", "!_"), ("-", "-_")] {
            let offset = self.offset();
            let mut count = 0;
            let number_follows = |parser: &Self| {
                let next = parser.tokens.get(parser.at + 1).map(|lexeme| &lexeme.token);
                matches!(next, Some(Token::Int(_) | Token::Double(_)))
            };
            while self.is(symbol) && !(symbol == "-" && count == 0 && number_follows(self)) {
                self.advance();
                count += 1;
            }
            if count == 0 {
                continue;
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(function, vec![operand], offset) };
        }
        self.member()
    }

    /// A primary and what follows it: `.field`, `.call()`, `[index]`.
    fn member(&mut self) -> Parsed {
        let mut operand = self.primary()?;
        let mut links = 0;
        loop {
            let offset = self.offset();
            if self.accept(".").is_some() {
                operand = self.selected(operand, offset)?;
            } else if self.accept("[").is_some() {
                let optional = self.accept("?").is_some();
                let index = self.expression()?;
                self.close("]")?;
                operand = self.call(if optional { "_[?_]" } else { "_[_]" }, vec![operand, index], offset)?;
            } else {
                break;
            }
            links += 1;
            self.deeper()?;
        }
        self.depth -= links;
        Ok(operand)
    }

    fn selected(&mut self, operand: Id, offset: usize) -> Parsed {
        let optional = self.accept("?").is_some();
        let name_offset = self.offset();
        let Token::Identifier(name) = self.current().token.clone() else {
            let text = self.text().to_owned();
            let message = match &self.current().token {
                Token::True | Token::False | Token::Null => {
                    format!("Syntax error: mismatched input '{text}' expecting IDENTIFIER")
                }
                Token::End => "Syntax error: no viable alternative at input '.'".to_owned(),
                _ => format!("Syntax error: no viable alternative at input '.{text}'"),
            };
            return self.stop(Some(name_offset), message);
        };
        self.advance();
        if optional {
            let field = self.push(Kind::Literal(Literal::String(name)), name_offset)?;
            return self.call("_?._", vec![operand, field], offset);
        }
        let open = self.offset();
        if self.accept("(").is_none() {
            return self.push(Kind::Select { operand, field: name, test: false }, offset);
        }
        let args = self.arguments()?;
        self.expand_or_call(name, Some(operand), args, open)
    }

    fn expand_or_call(&mut self, function: Name, target: Option<Id>, args: Vec<Id>, offset: usize) -> Parsed {
        match self.expand(&function, target, &args, offset)? {
            Some(expanded) => Ok(expanded),
            None => self.push(Kind::Call { function, target, args }, offset),
        }
    }

    fn arguments(&mut self) -> Parsed<Vec<Id>> {
        let mut args = Vec::new();
        if self.accept(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if self.accept(",").is_none() {
                break;
            }
        }
        if self.accept(")").is_none() {
            return self.unexpected(&format!("{{{CONTINUATIONS}, ')', ','}}"));
        }
        Ok(args)
    }

    fn primary(&mut self) -> Parsed {
        let offset = self.offset();
        match self.current().token.clone() {
            Token::Symbol("(") => {
                self.advance();
                let inner = self.expression()?;
                self.close(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => {
                self.advance();
                self.list(offset)
            }
            Token::Symbol("{") => {
                self.advance();
                self.map(offset)
            }
            Token::Symbol(".") => {
                self.advance();
                self.named(offset, ".")
            }
            Token::Identifier(_) => self.named(offset, ""),
            Token::Symbol("-") => {
                self.advance();
                self.literal(offset, "-")
            }
            _ => self.literal(offset, ""),
        }
    }

    fn literal(&mut self, offset: usize, sign: &str) -> Parsed {
        let literal = match self.current().token.clone() {
            Token::Int(text) => match signed(&text, sign) {
                Some(value) => Literal::Int(value),
                None => return self.stop(Some(offset), "invalid int literal"),
            },
            Token::Uint(text) => match unsigned(&text) {
                Some(value) => Literal::Uint(value),
                None => return self.stop(Some(offset), "invalid uint literal"),
            },
            Token::Double(text) => match format!("{sign}{text}").parse::<f64>() {
                Ok(value) if value.is_finite() => Literal::Double(value),
                _ => return self.stop(Some(offset), "invalid double literal"),
            },
            Token::String(text) => Literal::String(text),
            Token::Bytes(bytes) => Literal::Bytes(bytes),
            Token::True => Literal::Bool(true),
            Token::False => Literal::Bool(false),
            Token::Null => Literal::Null,
            _ => return self.unexpected(&format!("{{{EXPRESSION_STARTS}}}")),
        };
        self.advance();
        self.push(Kind::Literal(literal), offset)
    }

    /// An identifier, a call, or the construction of a message.
    fn named(&mut self, start: usize, dot: &str) -> Parsed {
        let offset = self.offset();
        let Token::Identifier(name) = self.current().token.clone() else {
            return self.unexpected("IDENTIFIER");
        };
        self.advance();
        if let Some(open) = self.message_open() {
            return self.message(format!("{dot}{name}"), open);
        }
        if RESERVED.contains(&&*name) {
            self.issues.report(Some(start), format!("reserved identifier: {name}"));
        }
        let full: Name = if dot.is_empty() { name } else { format!("{dot}{name}").into() };
        let open = self.offset();
        if self.accept("(").is_none() {
            return self.push(Kind::Ident(full), offset);
        }
        let args = self.arguments()?;
        self.expand_or_call(full, None, args, open)
    }

    /// Whether `.name.name{` follows: the index of its brace.
    fn message_open(&self) -> Option<usize> {
        let mut at = self.at;
        loop {
            match &self.tokens.get(at)?.token {
                Token::Symbol("{") => return Some(at),
                Token::Symbol(".") => {
                    let Token::Identifier(_) = self.tokens.get(at + 1)?.token else { return None };
                    at += 2;
                }
                _ => return None,
            }
        }
    }

    fn message(&mut self, mut name: String, open: usize) -> Parsed {
        while self.at < open {
            if let Token::Identifier(part) = &self.current().token {
                name.push('.');
                name.push_str(part);
            }
            self.advance();
        }
        let offset = self.advance().start;
        let mut fields = Vec::new();
        while self.accept("}").is_none() {
            let optional = self.accept("?").is_some();
            let Token::Identifier(field) = self.current().token.clone() else {
                return self.unexpected("{'}', IDENTIFIER, '?', ','}");
            };
            self.advance();
            let Some(colon) = self.accept(":") else { return self.unexpected("':'") };
            let value = self.expression()?;
            fields.push(Field { name: field, value, optional, offset: colon });
            if self.accept(",").is_none() {
                self.close("}")?;
                break;
            }
        }
        self.push(Kind::Struct { name: name.into(), fields }, offset)
    }

    fn list(&mut self, offset: usize) -> Parsed {
        let mut elements = Vec::new();
        while self.accept("]").is_none() {
            let optional = self.accept("?").is_some();
            elements.push(Element { value: self.expression()?, optional });
            if self.accept(",").is_none() {
                self.close("]")?;
                break;
            }
        }
        self.push(Kind::List(elements), offset)
    }

    fn map(&mut self, offset: usize) -> Parsed {
        let mut entries = Vec::new();
        while self.accept("}").is_none() {
            let optional = self.accept("?").is_some();
            let key = self.expression()?;
            if self.accept(":").is_none() {
                return self.unexpected(&format!("{{{CONTINUATIONS}, ':'}}"));
            }
            entries.push(Entry { key, value: self.expression()?, optional });
            if self.accept(",").is_none() {
                self.close("}")?;
                break;
            }
        }
        self.push(Kind::Map(entries), offset)
    }
}

fn signed(text: &str, sign: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16).ok(),
        None => format!("{sign}{text}").parse().ok(),
    }
}

fn unsigned(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
