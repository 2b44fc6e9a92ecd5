package stage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// State is where a staged file is on its way; see the package comment.
type State string

// The states.
const (
	Writing   State = "writing"
	Sealed    State = "sealed"
	Uploading State = "uploading"
	Refused   State = "refused"
	committed State = "committed" // on its way out of the spool
)

// Names in the folder of a staged file.
const (
	dataName  = "data"
	stateName = "state.json"
)

// record is what the spool keeps of a file beside its bytes.
type record struct {
	Folder   string    `json:"folder"` // an image, "" for images/ itself
	Name     string    `json:"name"`
	State    State     `json:"state"`
	Base     string    `json:"base,omitempty"`     // object that the disk had
	Key      string    `json:"key,omitempty"`      // object to be: may be there in part or whole
	Stale    []string  `json:"stale,omitempty"`    // objects of earlier attempts, to be removed
	Modified time.Time `json:"modified,omitzero"`  // as the client set it
	Error    string    `json:"error,omitempty"`    // why it was refused
	Needs    []string  `json:"needs,omitempty"`    // files that have to come beside it
	Replace  bool      `json:"replaces,omitempty"` // of a disk that is shown meanwhile
}

// refusedSuffix ends the name under which a refused file is shown when another
// version of the disk has the name itself.
const refusedSuffix = ".refused"

func (r *record) refused() bool { return strings.HasSuffix(r.Name, refusedSuffix) }

// final reports whether the name is one that a file is committed under.
func (r *record) final() bool { return !Unfinished(r.Name) && !r.refused() }

// save writes the record in one step. With durable set it is on the disk,
// with the file's bytes and name, when save returns.
func (r *record) save(dir string, durable bool) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, stateName+".new")
	f, err := os.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, stateName))
	}
	if err == nil && durable {
		err = syncDirs(dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir)))
	}
	return err
}

// syncDirs makes the names in folders durable.
func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("sync folder %q: %w", dir, err)
		}
	}
	return nil
}

// load reads the record of the staged file in dir.
func load(dir string) (r record, err error) {
	b, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%q: %w", filepath.Join(dir, stateName), err)
	}
	return r, nil
}
