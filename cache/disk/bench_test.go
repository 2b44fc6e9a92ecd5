package disk

import "testing"

func BenchmarkLoad(b *testing.B) {
	c, err := Open(Config{Dir: b.TempDir(), Size: minSize})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	o := object(c, "a")
	p := block(0, mib)
	if err := o.Store(b.Context(), p, 0); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(mib)
	for b.Loop() {
		if !o.Load(p, 0) {
			b.Fatal("it is gone")
		}
	}
}

func BenchmarkStore(b *testing.B) {
	c, err := Open(Config{Dir: b.TempDir(), Size: 256 * mib})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	o := object(c, "a")
	p := block(0, mib)
	b.SetBytes(mib)
	for i := 0; b.Loop(); i++ {
		if err := o.Store(b.Context(), p, int64(i)*mib); err != nil {
			b.Fatal(err)
		}
	}
}
