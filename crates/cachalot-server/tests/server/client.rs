//! A small HTTP client that shows everything and forgives nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message of an error in either form.
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Name and data of every event; the end mark of OpenAI's streams has no data.
    pub fn events(&self) -> Vec<(Option<String>, Value)> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"), "{self:?}");
        self.body.split_terminator("\n\n").filter(|block| !block.starts_with(':')).map(event).collect()
    }
}

fn event(block: &str) -> (Option<String>, Value) {
    let (mut name, mut data) = (None, Value::Null);
    for line in block.lines() {
        match line.split_once(": ").expect("a field and a value") {
            ("event", value) => name = Some(value.to_owned()),
            ("data", "[DONE]") => {}
            ("data", value) => data = serde_json::from_str(value).expect("JSON"),
            other => panic!("{other:?}"),
        }
    }
    (name, data)
}

/// A connection on which one request has been sent.
pub struct Asked {
    reader: BufReader<TcpStream>,
}

impl Asked {
    /// Sends a request; `headers` are whole lines.
    pub fn new(address: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
            head += &format!("host: {address}\r\n");
        }
        for line in headers {
            head += &format!("{line}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        // A server that refuses by the head need not read the body.
        let _ = stream.write_all(body.as_bytes());
        Self { reader: BufReader::new(stream) }
    }

    /// Reads lines until one holds `text`.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            assert_ne!(self.reader.read_line(&mut read).expect("read"), 0, "no {text:?} in {read:?}");
        }
        read
    }

    /// Whatever still comes until the connection ends, in whichever way.
    pub fn rest(mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.reader.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Reads the whole response.
    pub fn reply(mut self) -> Reply {
        let mut line = || {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("read");
            line.trim_end().to_owned()
        };
        let status = line();
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let mut body = Vec::new();
        self.reader.read_to_end(&mut body).expect("read");
        let body = if chunked { unchunked(&body) } else { body };
        Reply { status: status.expect("a status"), headers, body: String::from_utf8(body).expect("UTF-8") }
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a chunk's head");
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).expect("hex"), 16).expect("hex");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 2 + length + 2..];
    }
}

/// Sends JSON and reads the answer.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    Asked::new(address, "POST", path, &["content-type: application/json"], &body.to_string()).reply()
}

/// Asks for something.
pub fn get(address: SocketAddr, path: &str) -> Reply {
    Asked::new(address, "GET", path, &[], "").reply()
}
