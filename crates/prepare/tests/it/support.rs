//! A web server on the loopback interface whose answers a test decides, faults included.
#![allow(dead_code, reason = "every test program uses its own part of this")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    /// Number of earlier requests for this path.
    pub earlier: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Waits this long before the answer.
    pub delay: Duration,
    /// Resets the connection after this many bytes of the body.
    pub reset_after: Option<usize>,
    /// Stops sending after this many bytes of the body, and waits for the client to go away.
    pub stall_after: Option<usize>,
    /// Leaves the length out, so that the body ends with the connection.
    pub without_length: bool,
}

impl Reply {
    pub fn new(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            headers: vec![("Content-Type".to_owned(), kind.to_owned())],
            body: body.into(),
            delay: Duration::ZERO,
            reset_after: None,
            stall_after: None,
            without_length: false,
        }
    }

    pub fn redirect(to: &str) -> Self {
        Reply::new(302, "text/plain", "").header("Location", to)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The part of the body that a `Range: bytes=N-` header asks for, as a 206.
    pub fn ranged(mut self, request: &Request) -> Self {
        let range =
            request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        if let Some(start) = range.filter(|start: &usize| *start < self.body.len()) {
            let all = self.body.len();
            self.body.drain(..start);
            self.status = 206;
            self = self.header("Content-Range", &format!("bytes {start}-{}/{all}", all - 1));
        }
        self
    }
}

/// The server; it ends when dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stopping, log, answer) = (Arc::clone(&stop), Arc::clone(&requests), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                // A client that goes away is part of what is tested.
                std::thread::spawn(move || stream.and_then(|stream| serve(stream, &log, answer.as_ref())));
            }
        });
        Server { address, stop, requests, thread: Some(thread) }
    }

    /// Address of `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(mut request) = read_request(&mut reader)? {
        {
            let mut log = log.lock().unwrap();
            request.earlier = log.iter().filter(|other| other.path == request.path).count();
            log.push(request.clone());
        }
        let reply = answer(&request);
        std::thread::sleep(reply.delay);
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match reply.without_length {
            true => head += "Connection: close\r\n\r\n",
            false => head += &format!("Content-Length: {}\r\n\r\n", reply.body.len()),
        }
        stream.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            let sent = reply.reset_after.or(reply.stall_after).unwrap_or(reply.body.len());
            stream.write_all(&reply.body[..sent])?;
        }
        if reply.stall_after.is_some() {
            return std::io::copy(&mut reader, &mut std::io::sink()).map(drop);
        }
        if reply.reset_after.is_some() {
            return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        if reply.without_length {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(Request { method, path, headers, earlier: 0 }));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
}
