package s3

import (
	"cmp"
	"context"
	"io"
	"net"
	"os"
	"syscall"
)

// sendChunk is how much the kernel is asked to send at a time, in bytes.
const sendChunk = 1 << 20

// conn is a connection whose ReadFrom, which net/http hands the bodies of
// requests without TLS, has the kernel send files. It goes through a larger
// buffer than net's where the source is not a file.
type conn struct{ *net.TCPConn }

// dial returns a dialer for conns.
func dial(d *net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			return conn{tcp}, nil
		}
		return c, err
	}
}

// ReadFrom sends all of r.
func (c conn) ReadFrom(r io.Reader) (int64, error) {
	sent := int64(0)
	if l, ok := r.(*io.LimitedReader); ok {
		if b, ok := l.R.(*sending); ok {
			var err error
			if sent, err = b.sendFile(c.TCPConn, l.N); err != nil {
				return sent, err
			}
			l.N -= sent
		}
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{c.TCPConn}, struct{ io.Reader }{r}, buf[:])
	return sent + n, err
}

// sendFile has the kernel send up to n bytes of the body, as far as they lie in
// a file and nobody here has to see them.
func (b *sending) sendFile(c *net.TCPConn, n int64) (sent int64, err error) {
	to, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	for sent < n {
		var k int
		var perr error
		err := to.Write(func(socket uintptr) (done bool) {
			k, perr = b.sendPiece(int(socket), n-sent)
			return perr != syscall.EAGAIN
		})
		sent += int64(k)
		if err = cmp.Or(err, perr); err != nil || k == 0 {
			return sent, err
		}
	}
	return sent, nil
}

// sendPiece sends at most n bytes without waiting for the socket: that is
// syscall.EAGAIN. No bytes and no error is what the kernel does not send: the
// end of a file too, about which Read has the words.
func (b *sending) sendPiece(socket int, n int64) (sent int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, io.ErrClosedPipe
	}
	section, ok := b.r.(*io.SectionReader)
	if !ok || b.hash != nil || b.left == 0 {
		return 0, nil
	}
	f, off := file(section)
	if f == nil {
		return 0, nil
	}
	raw, err := f.SyscallConn() // Control keeps the file open meanwhile
	if err != nil {
		return 0, nil
	}
	n = min(n, b.left, sendChunk)
	cerr := raw.Control(func(fd uintptr) {
		for err = syscall.EINTR; err == syscall.EINTR; {
			at := off
			sent, err = syscall.Sendfile(socket, int(fd), &at, int(n))
		}
	})
	switch {
	case cerr != nil, err == syscall.EINVAL, err == syscall.ENOSYS, err == syscall.EOPNOTSUPP:
		return 0, nil
	case err == syscall.EAGAIN:
		return 0, err
	case err != nil:
		return 0, os.NewSyscallError("sendfile", err)
	}
	if _, err := section.Seek(int64(sent), io.SeekCurrent); err != nil {
		return sent, err
	}
	b.moved(sent)
	return sent, nil
}

// file returns the file that section reads, and where in it the next byte is,
// or nil.
func file(section *io.SectionReader) (*os.File, int64) {
	off, err := section.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, 0
	}
	for {
		r, from, _ := section.Outer()
		off += from
		switch r := r.(type) {
		case *os.File:
			return r, off
		case *io.SectionReader:
			section = r
		default:
			return nil, 0
		}
	}
}
