package zvhd

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// kinds of images that the tests write as the vendor's tool does.
const (
	kindStream = iota // ZVHD
	kindZlib          // ZVHD2 with zlib
	kindZstd          // ZVHD2 with zstd
)

var kindNames = []string{"zvhd", "zvhd2 zlib", "zvhd2 zstd"}

// written is an image of disk of a kind.
func written(t testing.TB, kind int, disk []byte) []byte {
	t.Helper()
	w := &writer{kind: kind, size: len(disk)}
	for i := 0; i*2097152 < len(disk); i++ {
		block := make([]byte, 2097152)
		copy(block, disk[i*2097152:])
		if bytes.Equal(block, make([]byte, len(block))) {
			continue
		}
		w.add(t, i, block)
	}
	return w.image()
}

// writer collects records.
type writer struct {
	kind, size int
	records    bytes.Buffer
	index      []byte
	blocks     []int
	z          *zlib.Writer // of the whole stream
	buf        bytes.Buffer // its output
}

// add compresses data of block i.
func (w *writer) add(t testing.TB, i int, data []byte) {
	t.Helper()
	var err error
	switch w.kind {
	case kindStream:
		if w.z == nil {
			w.z, err = zlib.NewWriterLevel(&w.buf, 6)
		}
	case kindZlib:
		w.z, err = zlib.NewWriterLevel(&w.buf, 6)
	case kindZstd:
		// Two frames: their outputs add up.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w.buf.Write(e.EncodeAll(data[:len(data)/3], nil))
		w.buf.Write(e.EncodeAll(data[len(data)/3:], nil))
	}
	if err != nil {
		t.Fatal(err)
	}
	if w.kind != kindZstd {
		if _, err := w.z.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.z.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	w.record(i, w.buf.Bytes())
	w.buf.Reset()
}

// record adds the record of block i.
func (w *writer) record(i int, payload []byte) {
	at := w.records.Len()
	w.records.WriteString("hwstream bg\x00")
	w.records.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(payload))))
	w.records.Write(binary.LittleEndian.AppendUint32(nil, uint32(i)))
	w.records.Write(make([]byte, 28))
	w.records.Write(payload)
	w.records.Write(make([]byte, (8192-4-(48+len(payload))%4096)%4096))
	w.records.WriteString("end\x00")
	w.index = binary.LittleEndian.AppendUint64(w.index, uint64(4096+at))
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(i))
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(w.records.Len()-at))
	w.blocks = append(w.blocks, i)
}

// image is the whole file. What the vendor's tool leaves undefined is noise.
func (w *writer) image() []byte {
	le := binary.LittleEndian
	h := make([]byte, 4096)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(h[512:])
	copy(h, []string{"stream\x00\x00", "z2strm\x00\x00", "z2strm\x00\x00"}[w.kind])
	le.PutUint32(h[8:], 2)
	le.PutUint32(h[12:], 0x10000)
	le.PutUint64(h[16:], 1<<64-1)
	copy(h[28:], "tap\x00")
	le.PutUint32(h[32:], 0x10003)
	le.PutUint64(h[40:], uint64(w.size))
	le.PutUint64(h[48:], uint64((w.size+1<<30-1)>>30<<30))
	le.PutUint32(h[60:], 4)
	r.Read(h[68:84])
	if w.kind == kindStream {
		sign(h)
		return bytes.Join([][]byte{h, w.records.Bytes(), h}, nil)
	}
	blocks := (w.size + 2097151) / 2097152
	bitmap := make([]byte, (blocks+32767)/32768*4096)
	for _, i := range w.blocks {
		bitmap[i/8] |= 1 << (i % 8)
	}
	segs := (len(w.blocks) + 32767) / 32768
	index := append(w.index, make([]byte, segs*524288-len(w.index))...)
	h[87], h[141] = 1, byte(w.kind-kindZlib)
	le.PutUint32(h[88:], 2097152)
	le.PutUint32(h[92:], uint32(blocks))
	sign(h)
	first := bytes.Clone(h) // written before anything is known of what follows
	le.PutUint64(h[96:], uint64(8192+w.records.Len()))
	le.PutUint64(h[104:], uint64(8192+w.records.Len()+len(index)))
	for i, v := range []int{len(index), len(bitmap), 524288, 4096, segs, len(bitmap) / 4096, len(w.blocks)} {
		le.PutUint32(h[112+4*i:], uint32(v))
	}
	stale := bytes.Clone(h)
	sign(h)
	return bytes.Join([][]byte{first, w.records.Bytes(), stale, index, bitmap, h}, nil)
}

// sign sets the checksum of the header h.
func sign(h []byte) {
	var sum uint32
	for i, c := range h[:512] {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	binary.LittleEndian.PutUint32(h[64:], ^sum)
}

// words is n bytes that compress as text does, with matches everywhere.
func words(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var dict [200][]byte
	for i := range dict {
		dict[i] = make([]byte, 2+r.IntN(12))
		for j := range dict[i] {
			dict[i][j] = byte('a' + r.IntN(26))
		}
	}
	b := make([]byte, 0, n+20)
	for len(b) < n {
		b = append(append(b, dict[r.IntN(len(dict))]...), ' ')
	}
	return b[:n]
}

// seams is a disk of n bytes of text around the borders of blocks, as far as a
// block can refer back: what lies between takes time only.
func seams(n int, seed uint64) []byte {
	b := make([]byte, n)
	const reach = 40 << 10
	text := words(2*reach, seed)
	for i := 0; i < n; i += 2097152 {
		from := max(i-reach, 0)
		copy(b[from:min(i+reach, n)], text[from-i+reach:])
	}
	return b
}

// sample is a disk of 5 blocks and a bit: text in blocks 0, 1, 3, 4 and the
// end, of which block 3 is noise in parts of its second half.
var sample = func() []byte {
	b := make([]byte, 5*2097152+1024)
	copy(b, words(400<<10, 1))
	copy(b[2*2097152-100<<10:], words(100<<10-5000, 1))
	copy(b[3*2097152+777:], words(100<<10, 1))
	noise(b[3*2097152+1<<20 : 4*2097152])
	copy(b[4*2097152:], words(200<<10, 1))
	copy(b[5*2097152-100<<10:], words(100<<10+777, 1))
	copy(b[5*2097152+100:], "the end")
	return b
}()

// noise fills both ends of b with bytes that do not compress, further than a
// block can refer back.
func noise(b []byte) {
	r := rand.NewChaCha8([32]byte{7})
	r.Read(b[:128<<10])
	r.Read(b[len(b)-128<<10:])
}

// tinyDisk has two blocks with data of three.
var tinyDisk = func() []byte {
	disk := make([]byte, 2*2097152+512)
	copy(disk[1000:], words(3000, 2))
	copy(disk[2*2097152:], words(512, 2))
	return disk
}()

// tiny is an image of tinyDisk, with a page for each record. It is the caller's.
func tiny(t testing.TB, kind int) []byte {
	t.Helper()
	return bytes.Clone(tinies[kind](t))
}

var tinies, samples = once(tinyDisk), once(sample)

// once is an image of disk of each kind, each made when it is asked for first.
func once(disk []byte) []func(t testing.TB) []byte {
	images := make([]func(t testing.TB) []byte, len(kindNames))
	for kind := range images {
		var made sync.Once
		var b []byte
		images[kind] = func(t testing.TB) []byte {
			t.Helper()
			made.Do(func() { b = written(t, kind, disk) })
			if b == nil {
				t.Fatal("an earlier test could not write this image")
			}
			return b
		}
	}
	return images
}
