//! The little of XML that S3's answers need: a tree of elements with text.

use anyhow::{Context, bail};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// One element. Attributes are left out: S3 puts nothing there that the tests look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// Reads one document.
    pub fn parse(document: &[u8]) -> anyhow::Result<Self> {
        let mut reader = Reader::from_reader(document);
        let mut stack = vec![Self::default()];
        loop {
            match reader.read_event()? {
                Event::Start(tag) => stack.push(Self::named(tag.local_name().as_ref())?),
                Event::Empty(tag) => {
                    let element = Self::named(tag.local_name().as_ref())?;
                    stack.last_mut().context("an element after the root")?.children.push(element);
                }
                Event::End(_) => {
                    let element = stack.pop().context("an end without a start")?;
                    stack.last_mut().context("an end after the root")?.children.push(element);
                }
                Event::Text(text) => stack.last_mut().context("text")?.text.push_str(&text.decode()?),
                Event::CData(text) => stack.last_mut().context("text")?.text.push_str(&text.decode()?),
                Event::GeneralRef(reference) => {
                    let top = stack.last_mut().context("a reference outside the root")?;
                    match reference.resolve_char_ref()? {
                        Some(character) => top.text.push(character),
                        None => top.text.push_str(
                            resolve_predefined_entity(&reference.decode()?).context("an unknown entity")?,
                        ),
                    }
                }
                Event::Eof => break,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
        let mut document = stack.pop().context("an empty stack")?;
        if !stack.is_empty() || document.children.len() != 1 {
            bail!("not one whole document");
        }
        Ok(document.children.remove(0))
    }

    fn named(name: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { name: std::str::from_utf8(name)?.to_owned(), ..Self::default() })
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of this name; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.child(name).map_or("", |child| child.text.as_str())
    }

    /// The text of `inner` in every child `outer`, in order: the keys of a listing are `texts("Contents", "Key")`.
    pub fn texts(&self, outer: &str, inner: &str) -> Vec<String> {
        self.all(outer).map(|child| child.get(inner).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_with_references() {
        let document =
            br#"<?xml version="1.0"?><R xmlns="http://x/"><C><K>a&amp;b&#10;c</K></C><C><K/></C><T>true</T></R>"#;
        let root = Element::parse(document).unwrap();
        assert_eq!(root.texts("C", "K"), ["a&b\nc", ""]);
        assert_eq!(root.get("T"), "true");
        assert!(Element::parse(b"<a><b></a>").is_err());
    }
}
