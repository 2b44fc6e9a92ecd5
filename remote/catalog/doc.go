// Package catalog says which images a store holds, and changes that.
//
// An image comes from one of two places:
//
//   - An entry: the object catalog/NAME.json names the image's disks, their
//     formats and what is known of the image. The format is [Entry].
//   - Adoption: an object NAME.EXT that lies directly in the store's folder is
//     image NAME with disk 0. NAME-0.EXT, NAME-1.EXT and so on are the disks of
//     one image NAME, if there is a NAME-0: a lone debian-12.qcow2 is the image
//     debian-12. EXT is one of the extensions the catalog was told; other
//     objects are left alone. An entry hides adopted objects of its name.
//
// An image whose entry or objects contradict each other is listed too, with
// the reason in Image.Err, so that one broken image never hides the others.
//
// [Catalog.Refresh] lists the store anew and swaps the whole view at once;
// listing reads no entry and opens no image, so ten thousand images cost three
// listings. Entries are read when they are looked up, and kept while their
// version stands. A Catalog is safe for concurrent use.
//
// # Writes
//
// An image is changed by conditional writes of its entry; of several writers
// one wins, and the others try again or get [ErrConflict]. An adopted image
// gets an entry, with its ID, when it is first changed. After each success the
// catalog shows the new state without a listing.
//
// An entry is never deleted while others may write it: an entry of no bytes, a
// mark, takes its place, and is no image. A deleted image's entry lies at
// deleted/NAME~ID.json, where NAME is cut if it is long. While the one with
// the ID of an adopted image is there, the objects of that name which lie at
// the top are not adopted, unless they were put since. A renamed image leaves
// such an entry where it has to, marked as hidden.
//
// A process that is killed leaves at worst an image under two names, its old
// one and its new one, or live and deleted; all its objects are there, and the
// same call again completes it. [GC] removes what is no longer of use.
package catalog
