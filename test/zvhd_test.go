package test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A reader of ZVHD and ZVHD2 from their description alone: nothing that Debian
// has reads them.

const (
	zvhdBlock = 2 * miB
	zvhdPage  = 4096
)

// zvhdHeader checks the header block at the start or end of a file and returns
// the size of the disk.
func zvhdHeader(b []byte, cookie string) (size int64, err error) {
	if string(b[:8]) != cookie {
		return 0, fmt.Errorf("cookie %q, want %q", b[:8], cookie)
	}
	sum := uint32(0)
	for i, c := range b[:512] {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	le := binary.LittleEndian
	if got := le.Uint32(b[64:]); got != ^sum {
		return 0, fmt.Errorf("checksum %#x, want %#x", got, ^sum)
	}
	size = int64(le.Uint64(b[40:]))
	if current := int64(le.Uint64(b[48:])); current != (size+giB-1)/giB*giB {
		return 0, fmt.Errorf("current size %d of a disk of %d", current, size)
	}
	if kind := le.Uint32(b[60:]); kind != 4 {
		return 0, fmt.Errorf("type %d, want 4", kind)
	}
	return size, nil
}

// zvhdRecord is the payload and the block number of the record at off, and
// where the next one is.
func zvhdRecord(file []byte, off int64) (payload []byte, block, next int64, err error) {
	b := file[off:]
	if string(b[:12]) != "hwstream bg\x00" {
		return nil, 0, 0, fmt.Errorf("no record at %#x", off)
	}
	n := int64(binary.LittleEndian.Uint32(b[12:]))
	block = int64(binary.LittleEndian.Uint32(b[16:]))
	length := (48 + n + 4 + zvhdPage - 1) / zvhdPage * zvhdPage
	if end := string(b[length-4 : length]); end != "end\x00" {
		return nil, 0, 0, fmt.Errorf("the record at %#x ends in %q", off, end)
	}
	return b[48 : 48+n], block, off + length, nil
}

// readZVHD decodes a whole file.
func readZVHD(file []byte) ([]byte, error) {
	const cookie = "stream\x00\x00"
	last := int64(len(file)) - zvhdPage
	size, err := zvhdHeader(file, cookie)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(file[:zvhdPage], file[last:]) {
		return nil, errors.New("the last block is not the first")
	}
	guest := make([]byte, (size+zvhdBlock-1)/zvhdBlock*zvhdBlock)
	// One stream over all payloads, which does not end.
	var stream bytes.Buffer
	var blocks []int64
	for off := int64(zvhdPage); off < last; {
		payload, block, next, err := zvhdRecord(file, off)
		if err != nil {
			return nil, err
		}
		stream.Write(payload)
		blocks, off = append(blocks, block), next
	}
	if len(blocks) == 0 {
		return guest[:size], nil
	}
	stream.Next(2) // zlib's head
	r := flate.NewReader(&stream)
	for _, b := range blocks {
		if _, err := io.ReadFull(r, guest[b*zvhdBlock:(b+1)*zvhdBlock]); err != nil {
			return nil, fmt.Errorf("block %d: %w", b, err)
		}
	}
	return guest[:size], nil
}

// readZVHD2 decodes a file by its index.
func readZVHD2(file []byte) ([]byte, error) {
	le := binary.LittleEndian
	h := file[len(file)-zvhdPage:]
	size, err := zvhdHeader(h, "z2strm\x00\x00")
	if err != nil {
		return nil, err
	}
	guest := make([]byte, (size+zvhdBlock-1)/zvhdBlock*zvhdBlock)
	index, bitmap, n := int64(le.Uint64(h[96:])), int64(le.Uint64(h[104:])), int64(le.Uint32(h[136:]))
	for k := range n {
		e := file[index+16*k:]
		off, block := int64(le.Uint64(e)), int64(le.Uint32(e[8:]))
		payload, b, next, err := zvhdRecord(file, off)
		if err != nil {
			return nil, err
		}
		if b != block || next-off != int64(le.Uint32(e[12:])) {
			return nil, fmt.Errorf("entry %d of the index is not what the record at %#x says", k, off)
		}
		if file[bitmap+block/8]>>(block%8)&1 == 0 {
			return nil, fmt.Errorf("block %d is not in the bitmap", block)
		}
		dst := guest[block*zvhdBlock : (block+1)*zvhdBlock]
		if h[141] == 0 {
			_, err = io.ReadFull(flate.NewReader(bytes.NewReader(payload[2:])), dst)
		} else {
			err = rawZstd(dst, payload)
		}
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", block, err)
		}
	}
	return guest[:size], nil
}

// rawZstd decodes a frame that has only raw blocks.
func rawZstd(dst, src []byte) error {
	if !bytes.HasPrefix(src, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}) {
		return fmt.Errorf("no frame with a content size of 4 bytes: % x", src[:5])
	}
	if n := binary.LittleEndian.Uint32(src[5:]); int(n) != len(dst) {
		return fmt.Errorf("a frame of %d bytes", n)
	}
	src = src[9:]
	for last := false; !last; {
		head := uint32(src[0]) | uint32(src[1])<<8 | uint32(src[2])<<16
		last = head&1 == 1
		n := int(head >> 3)
		if head>>1&3 != 0 || n > len(dst) {
			return fmt.Errorf("block head %#x", head)
		}
		copy(dst, src[3:3+n])
		dst, src = dst[n:], src[3+n:]
	}
	if len(dst) > 0 {
		return fmt.Errorf("%d bytes are missing", len(dst))
	}
	return nil
}

// TestZVHD reads the views of Huawei's cloud through a mount, and what is copied
// back in.
func TestZVHD(t *testing.T) {
	needFUSE(t)
	tool(t, "qemu-img")
	t.Parallel()
	inEachStore(t, func(t *testing.T, d *depot) {
		src := importSources(t)
		want, err := os.ReadFile(filepath.Join(src, "guest.raw"))
		if err != nil {
			t.Fatal(err)
		}
		m, _ := vmIn(t, d, src)
		for _, c := range []struct {
			view, ext string
			read      func([]byte) ([]byte, error)
		}{{"zvhd", "zvhd", readZVHD}, {"zvhd2", "zvhd2", readZVHD2}, {"zlib.zvhd2", "zvhd2", readZVHD2}} {
			path := m.Path("images", "vm", "disk0."+c.view)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
				continue
			}
			got, err := c.read(b)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %v, %d bytes, want %d", c.view, err, len(got), len(want))
			}
			image := "from-" + c.view
			back := m.Path("images", image, "disk0."+c.ext)
			mustSh(t, `mkdir "$(dirname "$2")"; cp "$1" "$2"; cmp "$1" "$2"`, path, back)
			for _, v := range views {
				sameGuest(t, v.qemu, m.Path("images", image, "disk0."+v.ext), "raw", filepath.Join(src, "guest.raw"))
			}
		}
	})
}
