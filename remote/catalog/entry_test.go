package catalog_test

import (
	"strings"
	"testing"
	"time"

	"imagefs/remote/catalog"
)

// full is an entry as FormatEntry writes it, with what is not known here.
const full = `{
  "version": 1,
  "id": "6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11",
  "name": "a & b",
  "status": "active",
  "created": "2026-01-31T12:00:00Z",
  "updated": "2026-02-01T12:00:00.123456789Z",
  "renamed_from": "old",
  "renamed_etag": "e1",
  "tags": [
    "prod"
  ],
  "properties": {
    "os": "linux"
  },
  "adopted": [
    {
      "key": "old.qcow2",
      "etag": "e",
      "size": 4
    }
  ],
  "disks": [
    {
      "key": "disks/a.qcow2",
      "format": "qcow2",
      "size": 4,
      "virtual_size": 512,
      "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
      "modified": "2026-01-30T12:00:00.000000001Z",
      "original": {
        "format": "raw",
        "size": 511,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
      },
      "declared": true,
      "later": {
        "deep": [
          1e400,
          "<"
        ]
      }
    },
    {
      "number": 7,
      "key": "disks/b.raw",
      "format": "raw"
    }
  ],
  "another": null,
  "zone": 12345678901234567890
}
`

func TestFormatEntryGivesBackWhatWasRead(t *testing.T) {
	e, err := catalog.ParseEntry([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if d := e.Disks[1]; d.Number != 7 || d.Key != "disks/b.raw" {
		t.Errorf("disk %+v", d)
	}
	if d := e.Disks[0]; d.Number != 0 || d.Modified.Nanosecond() != 1 || d.Original.Size != 511 || !d.Declared {
		t.Errorf("disk %+v", d)
	}
	got, err := catalog.FormatEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != full {
		t.Errorf("got\n%s\nwant\n%s", got, full)
	}
}

func TestEntriesThatContradictThemselves(t *testing.T) {
	const head = `{"version":1,"id":"6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11",`
	for _, tc := range []struct{ name, doc, want string }{
		{"two disks of one number", head + `"disks":[{"key":"a","format":"raw"},{"number":0,"key":"b","format":"raw"}]}`, "two disks have the number 0"},
		{"a negative number", head + `"disks":[{"number":-1,"key":"a","format":"raw"}]}`, "disk number -1"},
		{"a number that is too large", head + `"disks":[{"number":256,"key":"a","format":"raw"}]}`, "disk number 256"},
		{"a negative size", head + `"disks":[{"key":"a","format":"raw","size":-1}]}`, "negative"},
		{"a negative original", head + `"disks":[{"key":"a","format":"raw","original":{"format":"raw","size":-1}}]}`, "negative"},
		{"an original without format", head + `"disks":[{"key":"a","format":"raw","original":{}}]}`, "no format"},
		{"a short hash of the original", head + `"disks":[{"key":"a","format":"raw","original":{"format":"raw","sha256":"00"}}]}`, "sha256"},
		{"too many disks", head + `"disks":[` + strings.Repeat("{},", 256) + `{}]}`, "257 disks"},
		{"deep nesting", head + `"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}", "deeper than 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := catalog.ParseEntry([]byte(tc.doc))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to say %q", err, tc.want)
			}
		})
	}
}

func TestFormatEntryRefusesWhatCannotBeRead(t *testing.T) {
	good := func() *catalog.Entry {
		return &catalog.Entry{
			Version: 1, ID: "6f1cdd15-5a3a-4b4b-8a39-2f3b0b3b7a11",
			Disks: []catalog.EntryDisk{{Key: "a", Format: "raw"}},
		}
	}
	for name, spoil := range map[string]func(*catalog.Entry){
		"no disk":            func(e *catalog.Entry) { e.Disks = nil },
		"two disks 0":        func(e *catalog.Entry) { e.Disks = append(e.Disks, e.Disks[0]) },
		"a year of 5 digits": func(e *catalog.Entry) { e.Disks[0].Modified = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"too long":           func(e *catalog.Entry) { e.Tags = []string{strings.Repeat("x", 1<<20)} },
	} {
		e := good()
		spoil(e)
		if _, err := catalog.FormatEntry(e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := catalog.FormatEntry(good()); err != nil {
		t.Error(err)
	}
}
