//! Which paths a source file names, wherever it names them: in `use` trees, in
//! types, in expressions.
//!
//! Reading tokens is enough, since Rust writes every path that crosses a module
//! with `::` and starts it with `crate`, `super`, `self` or a crate's name.

/// A path that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Line of its first word, from 1.
    pub(crate) line: usize,
    /// The inline modules around it, outermost first.
    pub(crate) within: Vec<String>,
    /// Its words; `*` for everything.
    pub(crate) words: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    line: usize,
    text: String,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The paths that `source` names.
pub(crate) fn paths(source: &str) -> Vec<Named> {
    let tokens = tokens(source);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    // Inline modules that are open, each with the depth of braces outside it.
    let mut within: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "mod" if text(at + 2) == "{" => {
                within.push((text(at + 1).to_owned(), depth));
                depth += 1;
                at += 3;
                continue;
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                within.retain(|&(_, outside)| outside < depth);
            }
            _ => {}
        }
        // A crate imported whole, or renamed, has no `::` to be seen by.
        let starts = token.is_word() && (text(at + 1) == "::" || (at > 0 && text(at - 1) == "use"));
        if !starts {
            at += 1;
            continue;
        }
        let mut trees = Vec::new();
        at = tree(&tokens, at, &[], &mut trees);
        let within: Vec<_> = within.iter().map(|(name, _)| name.clone()).collect();
        found.extend(trees.into_iter().map(|words| Named {
            line: token.line,
            within: within.clone(),
            words,
        }));
    }
    found
}

/// Reads the path or `use` tree at `at` below `prefix`; returns where it ends.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut words = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        if token.text == "{" {
            return branches(tokens, at + 1, &words, found);
        }
        if token.text != "*" && !token.is_word() {
            // The `<` of a turbofish.
            break;
        }
        // `{self, ..}` names the prefix itself.
        if token.text != "self" || words.is_empty() {
            words.push(token.text.clone());
        }
        at += 1;
        if tokens.get(at).is_none_or(|token| token.text != "::") {
            break;
        }
        at += 1;
    }
    found.push(words);
    at
}

/// Reads what stands between the braces of a `use` tree; returns where they end.
fn branches(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "}" => return at + 1,
            // The new name is of no interest.
            "as" => at += 2,
            _ if token.is_word() || token.text == "*" => at = tree(tokens, at, prefix, found),
            _ => at += 1,
        }
    }
    at
}

/// Words, `::` and single characters; neither comments nor the insides of
/// literals.
fn tokens(source: &str) -> Vec<Token> {
    let characters: Vec<char> = source.chars().collect();
    let peek = |at: usize| characters.get(at).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < characters.len() {
        let start = at;
        match (peek(at), peek(at + 1)) {
            ('/', '/') => {
                while at < characters.len() && peek(at) != '\n' {
                    at += 1;
                }
            }
            ('/', '*') => at = after_block_comment(&characters, at),
            ('"', _) => at = after_string(&characters, at),
            ('r', '"' | '#') if raw_string_ends(&characters, at).is_some() => {
                at = raw_string_ends(&characters, at).unwrap_or(at + 1);
            }
            ('\'', '\\') => {
                at += 3;
                while at < characters.len() && peek(at) != '\'' {
                    at += 1;
                }
                at += 1;
            }
            // A character; otherwise it is a lifetime, whose quote means nothing.
            ('\'', _) => at += if peek(at + 2) == '\'' { 3 } else { 1 },
            (':', ':') => {
                tokens.push(Token { line, text: "::".to_owned() });
                at += 2;
            }
            (c, _) if c.is_alphanumeric() || c == '_' => {
                while peek(at).is_alphanumeric() || peek(at) == '_' {
                    at += 1;
                }
                let text = characters[start..at].iter().collect();
                tokens.push(Token { line, text });
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push(Token { line, text: c.to_string() });
                }
                at += 1;
            }
        }
        let end = at.min(characters.len());
        line += characters[start..end].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

fn after_block_comment(characters: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < characters.len() {
        match (characters[at], characters.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn after_string(characters: &[char], mut at: usize) -> usize {
    at += 1;
    while at < characters.len() && characters[at] != '"' {
        at += if characters[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Where the raw string at `at` ends, if one is there.
fn raw_string_ends(characters: &[char], at: usize) -> Option<usize> {
    let hashes = characters[at + 1..].iter().take_while(|&&c| c == '#').count();
    let body = at + 1 + hashes + 1;
    (characters.get(body - 1) == Some(&'"')).then_some(())?;
    let closes = |end: usize| {
        characters[end] == '"' && characters[end + 1..].iter().take(hashes).all(|&c| c == '#')
    };
    (body..characters.len()).find(|&end| closes(end)).map(|end| end + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str) -> Vec<String> {
        paths(source).into_iter().map(|named| named.words.join("::")).collect()
    }

    #[test]
    fn unfolds_use_trees() {
        let source = "pub(crate) use crate::{a::{B, c::*}, d as e, f::{self, G as H,},};";
        let expected = ["crate::a::B", "crate::a::c::*", "crate::d", "crate::f", "crate::f::G"];
        assert_eq!(named(source), expected);
    }

    #[test]
    fn sees_paths_in_code() {
        let source = "fn f(x: &crate::a::B<'_>) -> super::C { crate::d::e::<u8>(x) }";
        assert_eq!(named(source), ["crate::a::B", "super::C", "crate::d::e"]);
    }

    #[test]
    fn sees_a_crate_imported_whole() {
        assert_eq!(named("use netlink_sys as quiet;"), ["netlink_sys"]);
    }

    #[test]
    fn reads_neither_comments_nor_literals() {
        let source = r##"
            // crate::a
            /* crate::b /* nested */ crate::c */
            const X: &str = "crate::d \" crate::e"; const Y: &str = r#"crate::f " "#;
            const Z: char = '"'; const Q: char = '\''; fn f<'a>(_: &'a str) { crate::g() }
        "##;
        assert_eq!(named(source), ["crate::g"]);
        assert_eq!(paths(source)[0].line, 5);
    }

    #[test]
    fn knows_the_inline_modules_around_a_path() {
        let source = "mod outer { mod inner { use super::x; } use self::y; } use crate::z;";
        let within: Vec<_> =
            paths(source).into_iter().map(|named| named.within.join("/")).collect();
        assert_eq!(within, ["outer/inner", "outer", ""]);
    }
}
