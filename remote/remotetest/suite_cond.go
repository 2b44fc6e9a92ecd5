package remotetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"imagefs/remote"
)

// oddKeys are allowed keys that clients and servers are known to mangle.
var oddKeys = []string{
	"plain", "with space", "with+plus", "per%cent", "per%20cent", "amp&and", "quest?ion", "ha#sh",
	"equal=s", "semi;colon", "co,mma", "co:lon", "at@sign", `back\slash`, `quo"te`, "apos'trophe",
	"less<more>", "brace{}", "bar|", "caret^", "tilde~", "star*", "dollar$", "bang!", "back`tick",
	"ünïcödé", "日本語", "emoji😀", "e\u0301", "\u00e9", "..dots", "dots..", "-dash", "deep/er/and/deep er/k+y",
}

func list(t *testing.T, s remote.Store, prefix string) []string {
	t.Helper()
	var keys []string
	for o, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func listLevel(t *testing.T, s remote.Store) {
	var top, below []string
	for _, key := range oddKeys {
		if key[0] == '.' || key == "deep/er/and/deep er/k+y" {
			continue // hidden names are the store's choice
		}
		mustPut(t, s, key, []byte(key), remote.Cond{})
		mustPut(t, s, "sub folder/"+key, []byte(key), remote.Cond{})
		mustPut(t, s, "sub folder/deeper/"+key, []byte(key), remote.Cond{})
		top = append(top, key)
		below = append(below, "sub folder/"+key)
	}
	slices.Sort(top)
	slices.Sort(below)
	if got := list(t, s, ""); !slices.Equal(got, top) {
		t.Errorf("list of the top:\ngot  %q\nwant %q", got, top)
	}
	if got := list(t, s, "sub folder/"); !slices.Equal(got, below) {
		t.Errorf("list of a folder:\ngot  %q\nwant %q", got, below)
	}
	if got := list(t, s, "sub/"); len(got) != 0 {
		t.Errorf("list of a folder that is only a prefix of a name: got %q", got)
	}
	for _, folder := range []string{"", "sub folder/"} {
		for _, prefix := range []string{"d", "do", "dots.", "dots..", "dots...", "e\u0301", "sub", "日"} {
			var want []string
			for _, key := range top {
				if strings.HasPrefix(key, prefix) {
					want = append(want, folder+key)
				}
			}
			if got := list(t, s, folder+prefix); !slices.Equal(got, want) {
				t.Errorf("list of %q: got %q, want %q", folder+prefix, got, want)
			}
		}
	}
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Stat(t.Context(), o.Key)
		if err != nil {
			t.Fatalf("stat of listed key: %v", err)
		}
		if st.ETag != o.ETag || st.Size != o.Size || o.ModTime.IsZero() {
			t.Errorf("listed as %+v, stat says %+v", o, st)
		}
		if _, err := read(t, s, o); err != nil {
			t.Errorf("read of listed object %q: %v", o.Key, err)
		}
	}
}

func listMany(t *testing.T, s remote.Store) {
	var want []string
	for i := range 25 { // more than one page of a server told to keep them short
		key := fmt.Sprintf("many/%03d", i*7%25)
		mustPut(t, s, key, nil, remote.Cond{})
		want = append(want, key)
	}
	slices.Sort(want)
	if got := list(t, s, "many/"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	n := 0
	for range s.List(t.Context(), "many/") {
		if n++; n == 3 {
			break // leaving early is allowed
		}
	}
}

func createOnly(t *testing.T, s remote.Store) {
	mustPut(t, s, "a/k", []byte("first"), remote.Cond{Absent: true})
	_, err := s.Put(t.Context(), "a/k", bytes.NewReader([]byte("later")), 5, remote.Cond{Absent: true})
	wantErr(t, "create again", err, fs.ErrExist)
	mustHold(t, s, "a/k", []byte("first"))
}

func createOnlyRace(t *testing.T, s remote.Store) {
	for round := range 10 {
		key := fmt.Sprintf("race/%d", round)
		var winner atomic.Int64
		wins := race(t, 16, fs.ErrExist, func(i int) error {
			b := []byte(strconv.Itoa(i))
			_, err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), remote.Cond{Absent: true})
			if err == nil {
				winner.Store(int64(i))
			}
			return err
		})
		if wins != 1 {
			t.Fatalf("round %d: %d winners, want 1", round, wins)
		}
		mustHold(t, s, key, []byte(strconv.FormatInt(winner.Load(), 10)))
	}
}

func compareAndSwap(t *testing.T, s remote.Store) {
	swap := func(etag, text string) (remote.Object, error) {
		return s.Put(t.Context(), "a/k", bytes.NewReader([]byte(text)), int64(len(text)), remote.Cond{ETag: etag})
	}
	_, err := swap("0123456789abcdef0123456789abcdef", "x")
	wantErr(t, "swap of a missing key", err, remote.ErrChanged)
	if got := list(t, s, "a/"); len(got) != 0 {
		t.Fatalf("a refused swap left %q", got)
	}
	first := mustPut(t, s, "a/k", []byte("first"), remote.Cond{})
	second, err := swap(first.ETag, "second")
	if err != nil {
		t.Fatalf("swap of the current version: %v", err)
	}
	_, err = swap(first.ETag, "third")
	wantErr(t, "swap of an old version", err, remote.ErrChanged)
	mustHold(t, s, "a/k", []byte("second"))
	if err := s.Delete(t.Context(), "a/k"); err != nil {
		t.Fatal(err)
	}
	_, err = swap(second.ETag, "fourth")
	wantErr(t, "swap of a deleted version", err, remote.ErrChanged)
}

// compareAndSwapRace counts with several writers; no count may be lost.
func compareAndSwapRace(t *testing.T, s remote.Store) {
	const writers, each = 8, 5
	mustPut(t, s, "n", []byte("0"), remote.Cond{})
	wins := race(t, writers, nil, func(int) error {
		for done := 0; done < each; {
			o, err := s.Stat(t.Context(), "n")
			if err != nil {
				return err
			}
			b, err := read(t, s, o)
			if changed(err) {
				continue
			}
			n, err := strconv.Atoi(string(b))
			if err != nil {
				return err
			}
			next := []byte(strconv.Itoa(n + 1))
			_, err = s.Put(t.Context(), "n", bytes.NewReader(next), int64(len(next)), remote.Cond{ETag: o.ETag})
			if changed(err) {
				continue
			}
			if err != nil {
				return err
			}
			done++
		}
		return nil
	})
	if wins != writers {
		t.Fatalf("%d of %d writers finished", wins, writers)
	}
	mustHold(t, s, "n", []byte(strconv.Itoa(writers*each)))
}

func changed(err error) bool { return errors.Is(err, remote.ErrChanged) }
