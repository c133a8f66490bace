//! A small tree of XML elements, read and written with quick-xml, for changing a domain's definition.
//!
//! Comments and processing instructions are dropped, because libvirt keeps none. Names keep their prefixes.

use quick_xml::escape::{escape, unescape};
use quick_xml::events::Event;
use quick_xml::reader::Reader;

/// The text is not well-formed XML.
#[derive(Debug, thiserror::Error)]
#[error("cannot parse libvirt's domain XML: {0}")]
pub struct XmlError(String);

/// One element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    /// The text, if any; libvirt never mixes text and elements.
    pub(crate) text: String,
}

impl Element {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            attributes: Vec::new(),
            children: Vec::new(),
            text: String::new(),
        }
    }

    /// Adds an attribute, for building.
    #[expect(clippy::needless_pass_by_value, reason = "shorter call sites")]
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a child, for building.
    pub(crate) fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// Adds children, for building.
    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// Sets the text, for building.
    #[expect(clippy::needless_pass_by_value, reason = "shorter call sites")]
    pub(crate) fn text(mut self, text: impl ToString) -> Self {
        self.text = text.to_string();
        self
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The first child of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first child of that name, mutable.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.children.iter_mut().find(|child| child.name == name)
    }

    /// Parses one document.
    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let failed = |error: &dyn ToString| XmlError(error.to_string());
        let mut reader = Reader::from_str(text);
        // The open elements, outermost first; the first entry is a placeholder that collects the root.
        let mut open = vec![Self::new("")];
        loop {
            match reader.read_event().map_err(|e| failed(&e))? {
                Event::Start(start) => open.push(Self::of(&start)?),
                Event::Empty(start) => {
                    let element = Self::of(&start)?;
                    innermost(&mut open)?.children.push(element);
                }
                Event::End(_) => {
                    let mut element = open.pop().ok_or_else(unbalanced)?;
                    if !element.children.is_empty() {
                        element.text.clear();
                    }
                    innermost(&mut open)?.children.push(element);
                }
                Event::Text(text) => {
                    let text = text.decode().map_err(|e| failed(&e))?;
                    innermost(&mut open)?.text.push_str(&text);
                }
                Event::CData(text) => {
                    let text = text.decode().map_err(|e| failed(&e))?;
                    innermost(&mut open)?.text.push_str(&text);
                }
                Event::GeneralRef(reference) => {
                    let name = reference.decode().map_err(|e| failed(&e))?;
                    let text = format!("&{name};");
                    let text = unescape(&text).map_err(|e| failed(&e))?;
                    innermost(&mut open)?.text.push_str(&text);
                }
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
                Event::Eof => break,
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(outermost), true) => {
                let root = outermost.children.into_iter().next();
                root.ok_or_else(|| XmlError("the document is empty".to_owned()))
            }
            _ => Err(unbalanced()),
        }
    }

    fn of(start: &quick_xml::events::BytesStart<'_>) -> Result<Self, XmlError> {
        let utf8 = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|error| XmlError(error.to_string()))
        };
        let mut element = Self::new(&utf8(start.name().as_ref())?);
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| XmlError(error.to_string()))?;
            let raw = utf8(&attribute.value)?;
            let value = unescape(&raw).map_err(|error| XmlError(error.to_string()))?;
            element
                .attributes
                .push((utf8(attribute.key.as_ref())?, value.into_owned()));
        }
        Ok(element)
    }

    /// Serializes the element, indented by two spaces.
    pub(crate) fn write(&self) -> String {
        let mut text = String::with_capacity(4096);
        self.write_into(&mut text, 0);
        text
    }

    fn write_into(&self, out: &mut String, depth: usize) {
        let indent = |out: &mut String| out.extend(std::iter::repeat_n("  ", depth));
        indent(out);
        out.push('<');
        out.push_str(&self.name);
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("='");
            out.push_str(&escape(value.as_str()));
            out.push('\'');
        }
        if !self.children.is_empty() {
            out.push_str(">\n");
            for child in &self.children {
                child.write_into(out, depth + 1);
            }
            indent(out);
            out.push_str("</");
            out.push_str(&self.name);
            out.push_str(">\n");
        } else if self.text.is_empty() {
            out.push_str("/>\n");
        } else {
            out.push('>');
            out.push_str(&escape(self.text.as_str()));
            out.push_str("</");
            out.push_str(&self.name);
            out.push_str(">\n");
        }
    }
}

fn innermost(open: &mut [Element]) -> Result<&mut Element, XmlError> {
    open.last_mut().ok_or_else(unbalanced)
}

fn unbalanced() -> XmlError {
    XmlError("the tags do not match".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_parsed_document_is_written_unchanged() {
        let text = "<a x='1' y='&lt;&amp;&apos;&quot;'>\n  <b/>\n  <c:d xmlns:c='urn:x'>t &amp; u</c:d>\n</a>\n";
        assert_eq!(Element::parse(text).unwrap().write(), text);
    }

    #[test]
    fn invalid_documents_are_refused() {
        for invalid in ["", "<a>", "<a></b>", "</a>", "<a x=1/>", "<a>&nope;</a>"] {
            assert!(Element::parse(invalid).is_err(), "{invalid}");
        }
    }

    proptest! {
        #[test]
        fn any_text_and_attribute_is_parsed_as_it_was_written(text in "[^\\x00-\\x1f]{0,40}", value in "[^\\x00-\\x1f]{0,40}") {
            let element = Element::new("e").with("v", &value).text(&text);
            prop_assert_eq!(Element::parse(&element.write()).unwrap(), element);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[<>a/&;'= ]{0,60}") {
            let _ = Element::parse(&text);
        }
    }
}
