package qcow2

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

type inflater struct {
	in bytes.Reader
	fr io.ReadCloser
}

var inflaters = sync.Pool{New: func() any {
	f := &inflater{}
	f.fr = flate.NewReader(&f.in)
	return f
}}

// inflate fills dst from the raw deflate stream at the start of src.
func inflate(dst, src []byte) error {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	f.in.Reset(src)
	if err := f.fr.(flate.Resetter).Reset(&f.in, nil); err != nil {
		return err
	}
	_, err := io.ReadFull(f.fr, dst)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errShort
	}
	return err
}
