package codec

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// The file of an index. All numbers are little-endian, and all sums CRC-32C:
//
//	  0  16  "imagefs index 1\n"
//	 16   8  bytes of the object that the disk is in
//	 24   8  bytes of the disk
//	 32   8  bytes of a block
//	 40   4  encoding of the streams: 0 none, 1 deflate, 2 zstd; then 4 zeros
//	 48   8  e, the number of encoded blocks
//	 56   8  w, the number of windows
//	 64   8  bytes of blocks behind each window
//	 72   8  bytes of the data of all windows
//	 80   4  sum of the next part, 84 4 of the one behind it
//	 88   4  sum of the first and last 4096 bytes of the object; then zeros
//	124   4  sum of these 124 bytes
//	128 8*e  for each encoded block, in guest order: length of its stream, or 0
//	         if it is not handed on; adler32 of the block, deflate only
//	    8*w  for each window: length of its data, sum of them
//	         the windows, each as raw deflate; of no bytes where none is needed
const (
	indexMagic = "imagefs index 1\n"
	indexHead  = 128
	indexEntry = 8
)

var (
	indexCodes = []string{"", Deflate, Zstd}
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// endLen is how much of either end of an object an index knows it by.
const endLen = 4096

// sumEnds is the sum of both ends of src.
func sumEnds(ctx context.Context, src Source) (uint32, error) {
	n := min(endLen, src.Size())
	b := make([]byte, 2*n)
	if err := ReadFull(ctx, src, b[:n], 0, "object"); err != nil {
		return 0, err
	}
	err := ReadFull(ctx, src, b[n:], src.Size()-n, "object")
	return checksum(b), err
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Size is the length of the index as a file, in bytes.
func (x *Index) Size() int64 {
	blocks, _ := x.Blocks()
	return indexHead + indexEntry*blocks + indexEntry*int64(len(x.windows)) + x.dataLen()
}

func (x *Index) dataLen() int64 {
	if k := len(x.windows) - 1; k >= 0 {
		return x.windows[k].off + int64(x.windows[k].n)
	}
	return 0
}

// WriteTo writes the index as a file, which [OpenIndex] reads.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	sum := func(put func(io.Writer) error) uint32 {
		h := crc32.New(castagnoli)
		_ = put(h) // a hash takes everything
		return h.Sum32()
	}
	head := make([]byte, indexHead)
	copy(head, indexMagic)
	blocks, _ := x.Blocks()
	for i, v := range []int64{x.stored, x.size, x.block} {
		le.PutUint64(head[16+8*i:], uint64(v))
	}
	for i, s := range indexCodes {
		if s == x.encoding {
			le.PutUint32(head[40:], uint32(i))
		}
	}
	for i, v := range []int64{blocks, int64(len(x.windows)), x.every, x.dataLen()} {
		le.PutUint64(head[48+8*i:], uint64(v))
	}
	le.PutUint32(head[80:], sum(x.putBlocks))
	le.PutUint32(head[84:], sum(x.putWindows))
	le.PutUint32(head[88:], x.ends)
	le.PutUint32(head[124:], checksum(head[:124]))

	c := &counter{w: w}
	b := bufio.NewWriterSize(c, 64<<10)
	_, err := b.Write(head)
	err = firstOf(err, x.putBlocks(b), x.putWindows(b), b.Flush())
	if err == nil {
		err = x.putData(c)
	}
	if err != nil {
		err = fmt.Errorf("write an index: %w", err)
	}
	return c.n, err
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (x *Index) putBlocks(w io.Writer) error {
	if x.encoded == nil {
		return nil
	}
	k := 0
	var b [indexEntry]byte
	for e := range x.encoded.Extents(context.Background(), 0, x.size) {
		if e.Zero {
			continue
		}
		for i := e.Off / x.block; i < Ceil(e.Off+e.Len, x.block); i++ {
			b = [indexEntry]byte{}
			if x.handed.Has(i) {
				le.PutUint32(b[:], x.lens[k])
				le.PutUint32(b[4:], x.sums[k])
				k++
			}
			if _, err := w.Write(b[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *Index) putWindows(w io.Writer) error {
	var b [indexEntry]byte
	for _, v := range x.windows {
		le.PutUint32(b[:], v.n)
		le.PutUint32(b[4:], v.crc)
		if _, err := w.Write(b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (x *Index) putData(w io.Writer) error {
	for _, v := range x.windows {
		b, err := x.windowData(context.Background(), v)
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// OpenIndex reads the index of d, the disk that was opened from the object it
// was built of. Everything in it is checked against d; it is an [ErrCorrupt]
// where they do not fit. The windows are read from src when they are asked for.
func OpenIndex(ctx context.Context, src Source, d Disk) (*Index, error) {
	x, err := openIndex(ctx, src, d)
	if err != nil {
		return nil, fmt.Errorf("open an index: %w", err)
	}
	return x, nil
}

func openIndex(ctx context.Context, src Source, d Disk) (*Index, error) {
	head := make([]byte, indexHead)
	if err := ReadFull(ctx, src, head, 0, "header"); err != nil {
		return nil, err
	}
	if string(head[:len(indexMagic)]) != indexMagic {
		return nil, fmt.Errorf("%w: it begins with %q, not %q", ErrFormat, head[:len(indexMagic)], indexMagic)
	}
	if checksum(head[:124]) != le.Uint32(head[124:]) {
		return nil, Corruptf("header: another checksum")
	}
	var x *Index
	var stored Source
	want := struct{ blocks, windows int64 }{}
	streamed, _ := d.(Streamed)
	windowed, _ := d.(Windowed)
	switch {
	case streamed != nil && streamed.Unit() > 0:
		stored = streamed.Stored()
		x = newIndex(streamed, stored)
		x.encoding = streamed.Encoding()
		var err error
		if x.encoded, err = encodedBlocks(ctx, streamed); err != nil {
			return nil, err
		}
		want.blocks = x.encoded.Count()
	case windowed != nil && windowed.Unit() > 0:
		stored = windowed.Stored()
		x = newIndex(windowed, stored)
		want.windows, x.every = windowed.Restarts()
	default:
		return nil, Corruptf("the disk has nothing that is indexed")
	}
	code := le.Uint32(head[40:])
	if int64(code) >= int64(len(indexCodes)) || indexCodes[code] != x.encoding {
		return nil, Corruptf("encoding %d at 40, the disk's is %q", code, x.encoding)
	}
	field := func(at int) uint64 { return le.Uint64(head[at:]) }
	for _, f := range []struct {
		at   int
		what string
		want int64
	}{
		{16, "bytes of the object", x.stored},
		{24, "bytes of the disk", x.size},
		{32, "bytes of a block", x.block},
		{48, "encoded blocks", want.blocks},
		{56, "windows", want.windows},
		{64, "bytes behind a window", x.every},
	} {
		if field(f.at) != uint64(f.want) {
			return nil, Corruptf("%d %s at %d, the disk has %d: it is of another one", field(f.at), f.what, f.at, f.want)
		}
	}
	var err error
	if x.ends, err = sumEnds(ctx, stored); err != nil {
		return nil, err
	}
	if le.Uint32(head[88:]) != x.ends {
		return nil, Corruptf("the object begins or ends with other bytes: it is of another one")
	}
	data := indexHead + indexEntry*(want.blocks+want.windows)
	if n := src.Size() - data; n < 0 || field(72) != uint64(n) {
		return nil, Corruptf("%d bytes of windows at 72 of a file of %d bytes: want %d", field(72), src.Size(), n)
	}
	x.data = &shifted{src, data}
	if streamed != nil {
		if err := x.readBlocks(ctx, src, streamed, le.Uint32(head[80:])); err != nil {
			return nil, err
		}
	}
	if err := x.readWindows(ctx, src, want.windows, le.Uint32(head[84:])); err != nil {
		return nil, err
	}
	return x, nil
}

// readBlocks reads the entries of all encoded blocks.
func (x *Index) readBlocks(ctx context.Context, src Source, d Streamed, sum uint32) error {
	n := x.encoded.Count()
	x.lens, x.sums = make([]uint32, 0, n), make([]uint32, 0, n)
	r := entryReader{src: src, at: indexHead, end: indexHead + indexEntry*n}
	err := x.hand(ctx, d, func(i int64) (int64, uint32, error) {
		n, adler, err := r.next(ctx)
		if err != nil {
			return 0, 0, err
		}
		off, _ := d.StreamAt(i)
		if off < 0 || off > x.stored || int64(n) > x.stored-off {
			return 0, 0, Corruptf("the stream of block %d has %d bytes at %#x: past the end of the object (%d bytes)", i, n, off, x.stored)
		}
		return int64(n), adler, nil
	})
	if err == nil && (r.at != r.end || len(r.buf) > 0 || r.crc != sum) {
		err = Corruptf("the entries of blocks have another checksum")
	}
	return err
}

func (x *Index) readWindows(ctx context.Context, src Source, n int64, sum uint32) error {
	end := indexHead + indexEntry*(n+x.count())
	r := entryReader{src: src, at: end - indexEntry*n, end: end}
	x.windows = make([]window, 0, n) // as many as the disk has
	off := int64(0)
	for range n {
		v, crc, err := r.next(ctx)
		if err != nil {
			return err
		}
		x.windows = append(x.windows, window{off, v, crc})
		off += int64(v)
	}
	switch {
	case r.crc != sum:
		return Corruptf("the entries of windows have another checksum")
	case off != src.Size()-end:
		return Corruptf("windows of %d bytes in all, the file has %d", off, src.Size()-end)
	}
	for _, v := range x.windows {
		if v.n > 2*windowMax {
			return Corruptf("the window at %#x has %d bytes", v.off, v.n)
		}
	}
	return nil
}

func (x *Index) count() int64 {
	n, _ := x.Blocks()
	return n
}

// entryReader reads entries of two numbers, in pieces.
type entryReader struct {
	src     Source
	at, end int64
	mem     []byte
	buf     []byte // of it, not yet given out
	crc     uint32
}

func (r *entryReader) next(ctx context.Context) (a, b uint32, err error) {
	if len(r.buf) == 0 {
		if r.mem == nil {
			r.mem = make([]byte, min(entryPiece, r.end-r.at))
		}
		r.buf = r.mem[:min(int64(len(r.mem)), r.end-r.at)]
		if len(r.buf) == 0 {
			return 0, 0, Corruptf("fewer entries than the disk has blocks")
		}
		if err := ReadFull(ctx, r.src, r.buf, r.at, "entries"); err != nil {
			return 0, 0, err
		}
		r.at += int64(len(r.buf))
		r.crc = crc32.Update(r.crc, castagnoli, r.buf)
	}
	a, b = le.Uint32(r.buf), le.Uint32(r.buf[4:])
	r.buf = r.buf[indexEntry:]
	return a, b, nil
}

// shifted is a source from a place on.
type shifted struct {
	src Source
	off int64
}

func (s *shifted) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return s.src.ReadAt(ctx, p, s.off+off)
}
