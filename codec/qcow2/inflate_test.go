package qcow2

import (
	"bytes"
	"compress/flate"
	"io"
	"math/rand/v2"
	"testing"

	kflate "github.com/klauspost/compress/flate"

	"imagefs/codec/codectest"
)

// reference inflates with the standard library: n bytes, or false.
func reference(src []byte, n int) ([]byte, bool) {
	b := make([]byte, n)
	_, err := io.ReadFull(flate.NewReader(bytes.NewReader(src)), b)
	return b, err == nil
}

// deflate compresses b as zlib's kin do at a level.
func deflate(t testing.TB, b []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// shapes are bytes that lead to every kind of block, code and match.
func shapes(n int) map[string][]byte {
	r := rand.New(rand.NewPCG(5, 6))
	m := map[string][]byte{"sample": sample(n), "zeros": make([]byte, n)}
	for period := 1; period <= 10; period++ {
		b := make([]byte, n)
		for i := range b {
			if b[i] = byte(i % period * 7); r.IntN(200) == 0 {
				b[i] = byte(r.Uint32())
			}
		}
		m[string(rune('a'+period))+" periodic"] = b
	}
	random := make([]byte, n)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	m["random"] = random
	skewed := make([]byte, n) // long codes: each value half as often as the last
	for i := range skewed {
		for skewed[i] < 40 && r.IntN(2) == 0 {
			skewed[i]++
		}
		skewed[i] *= 3
	}
	m["skewed"] = skewed
	far := bytes.Clone(random)
	for i := 0; i+32768+300 < n; i += 33000 { // distances of 32 KiB
		copy(far[i+32768:], far[i:i+300])
	}
	m["far"] = far
	return m
}

func TestInflate(t *testing.T) {
	for _, n := range []int{1, 300, 4096, 70000} {
		for name, want := range shapes(n + 3) {
			want = want[:n]
			for _, level := range []int{-2, 0, 1, 6} {
				src := deflate(t, want, level)
				for _, junk := range []int{0, 40} {
					in := append(bytes.Clone(src), bytes.Repeat([]byte{0xa5}, junk)...)
					got := make([]byte, n)
					if err := inflate(got, in); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s, %d bytes, level %d, %d bytes behind: %v, or other content", name, n, level, junk, err)
					}
				}
				if err := inflate(make([]byte, n+1), src); err != errShort {
					t.Fatalf("%s, %d bytes, level %d: one byte more than there is: %v", name, n, level, err)
				}
			}
			var b bytes.Buffer
			if _, err := kflate.NewStatelessWriter(&b).Write(want); err != nil {
				t.Fatal(err)
			}
			if got := make([]byte, n); inflate(got, b.Bytes()) != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s, %d bytes: without a final block", name, n)
			}
		}
	}
}

// checkInflate holds inflate to the standard library on any input. That one may
// want bits behind the last code it needs: what it takes is taken, and what is
// taken it takes too with a few more bits.
func checkInflate(t *testing.T, src []byte, n int) {
	t.Helper()
	got := make([]byte, n+64)
	for i := range got {
		got[i] = 0xee
	}
	err := inflate(got[:n:n], src)
	if _, ok := reference(src, n); ok && err != nil {
		t.Fatalf("%d bytes of %x: %v, but the standard library takes it", n, src, err)
	}
	if err == nil {
		want, ok := reference(append(bytes.Clone(src), 0, 0, 0, 0), n)
		if !ok || !bytes.Equal(got[:n], want) {
			t.Fatalf("%d bytes of %x: the standard library takes it: %v, or other content", n, src, ok)
		}
	}
	if !bytes.Equal(got[n:], bytes.Repeat([]byte{0xee}, 64)) {
		t.Fatal("wrote past the end")
	}
	checkMeasure(t, src, n)
}

// TestMeasure: a stream ends where the standard library finds its end, whatever
// follows, and one that has no end is none.
func TestMeasure(t *testing.T) {
	for _, n := range []int{1, 300, 4096, 70000} {
		for name, want := range shapes(n + 3) {
			for _, level := range []int{-2, 0, 1, 6} {
				src := deflate(t, want[:n], level)
				for _, junk := range []int{0, 1, 40} {
					in := append(bytes.Clone(src), bytes.Repeat([]byte{0xa5}, junk)...)
					got := make([]byte, n)
					if k, err := measure(got, in); err != nil || k != len(src) || !bytes.Equal(got, want[:n]) {
						t.Errorf("%s, %d bytes at level %d: %d of %d bytes, %v", name, n, level, k, len(src), err)
					}
				}
				// The same with more to come than is wanted.
				for _, less := range []int{1, 2, 200} {
					if less < n {
						if k, err := measure(make([]byte, n-less), src); err != nil || k != 0 {
							t.Errorf("%s, %d bytes at level %d, %d less: %d, %v", name, n, level, less, k, err)
						}
					}
				}
			}
		}
	}
}

// checkMeasure: what is measured is a whole stream for the standard library.
func checkMeasure(t *testing.T, src []byte, n int) {
	t.Helper()
	got := make([]byte, n)
	k, err := measure(got, src)
	if err != nil || k == 0 {
		return
	}
	r := bytes.NewReader(src[:k])
	want, err := io.ReadAll(flate.NewReader(r))
	if err != nil || r.Len() != 0 || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %x: measured as %d, of which the standard library leaves %d, %v", n, src, k, r.Len(), err)
	}
}

// Damaged streams fail or decode as the standard library's.
func TestInflateDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, b := range shapes(6000) {
		for _, level := range []int{-2, 0, 1, 6, 9} {
			src := deflate(t, b, level)
			for range 60 / codectest.Thin(4) {
				in := bytes.Clone(src)
				for range 1 + r.IntN(3) {
					i := r.IntN(len(in))
					if r.IntN(2) == 0 {
						i = r.IntN(min(len(in), 60))
					}
					in[i] ^= 1 << r.IntN(8)
				}
				checkInflate(t, in, 1+r.IntN(6000))
				checkInflate(t, in[:r.IntN(len(in))], 1+r.IntN(6000))
			}
		}
	}
}

func FuzzInflate(f *testing.F) {
	for _, b := range shapes(1500) {
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(deflate(f, b, level), uint16(1500))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, n uint16) { checkInflate(t, src, int(n)+1) })
}

// flateWriter is a writer of deflate that can flush.
func flateWriter(t testing.TB, w io.Writer) *flate.Writer {
	t.Helper()
	f, err := flate.NewWriter(w, 6)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
