/* SPDX-License-Identifier: BSD-2-Clause */
/* Every fault that can be found: its name, which never changes, its rank, and what it means. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "vhd_check.h"

static const struct {
	const char *id;
	enum img_severity severity;
	const char *what;
} faults[] = {
	[F_ROLLBACK_PENDING] = {"rollback-pending", IMG_ERROR,
				"a change was cut short and is not undone yet"},
	[F_MERGE_UNFINISHED] =
		{"merge-unfinished", IMG_ERROR,
		 "half merged: neither the old disk nor the new one, except through the child"},
	[F_MERGE_MARKER_DAMAGED] = {"merge-marker-damaged", IMG_ERROR,
				    "unreadable marker of a merge"},
	[F_RECEIVE_UNFINISHED] = {"receive-unfinished", IMG_WARNING,
				  "a stream is being received onto the disk, or was interrupted"},
	[F_ABSORBED] = {"absorbed", IMG_NOTE,
			"it was merged into its parent, and is not needed any more"},
	[F_ABSORBED_DAMAGED] = {"absorbed-damaged", IMG_WARNING,
				"what was merged into the disk cannot be read"},
	[F_PARENT_WRITTEN] =
		{"parent-written", IMG_WARNING,
		 "it was merged into its parent, and that was written to since: it shows a mix of both"},
	[F_UNDO_LEFT] = {"undo-left", IMG_NOTE, "an earlier repair can be taken back"},
	[F_FOOTER_NONE] = {"footer-none", IMG_ERROR,
			   "no usable footer: no VHD, or nothing left to tell which"},
	[F_FOOTER_POISONED] =
		{"footer-poisoned", IMG_ERROR,
		 "disabled by a resize of XenServer; vhd-util revert with its journal mends it"},
	[F_FOOTER_END_MISSING] = {"footer-end-missing", IMG_ERROR,
				  "no footer at the end of the file"},
	[F_FOOTER_END_MISPLACED] = {"footer-end-misplaced", IMG_ERROR,
				    "bytes behind the end footer"},
	[F_FOOTER_END_BAD_CHECKSUM] = {"footer-end-bad-checksum", IMG_ERROR,
				       "end footer: wrong checksum"},
	[F_FOOTER_END_BAD_VERSION] = {"footer-end-bad-version", IMG_ERROR,
				      "end footer: unknown format version"},
	[F_FOOTER_END_BAD_TYPE] = {"footer-end-bad-type", IMG_ERROR,
				   "end footer: unknown disk type"},
	[F_FOOTER_END_SHORT] =
		{"footer-end-short", IMG_WARNING,
		 "footer of 511 bytes, from before Virtual PC 2004; many programs refuse it"},
	[F_FOOTER_FRONT_MISSING] = {"footer-front-missing", IMG_ERROR,
				    "no copy of the footer at offset 0"},
	[F_FOOTER_FRONT_BAD_CHECKSUM] = {"footer-front-bad-checksum", IMG_ERROR,
					 "front footer: wrong checksum"},
	[F_FOOTER_FRONT_BAD_VERSION] = {"footer-front-bad-version", IMG_ERROR,
					"front footer: unknown format version"},
	[F_FOOTER_FRONT_BAD_TYPE] = {"footer-front-bad-type", IMG_ERROR,
				     "front footer: unknown disk type"},
	[F_FOOTER_COPIES_DIFFER] = {"footer-copies-differ", IMG_ERROR,
				    "both footers are valid, but say different things"},
	[F_FOOTER_FEATURES] = {"footer-features", IMG_WARNING,
			       "footer: the reserved feature bit must be set"},
	[F_FOOTER_DATA_OFFSET] = {"footer-data-offset", IMG_WARNING,
				  "footer: a fixed disk has no header"},
	[F_FOOTER_RESERVED] = {"footer-reserved", IMG_NOTE,
			       "footer: reserved bytes are not zero; 7-Zip refuses that"},
	[F_FOOTER_SAVED_STATE] = {"footer-saved-state", IMG_WARNING,
				  "a saved virtual machine depends on the disk"},
	[F_FOOTER_UUID_NONE] = {"footer-uuid-none", IMG_WARNING,
				"the UUID is all zeros: no child can name the disk"},
	[F_SIZE_NOT_SECTORS] = {"size-not-sectors", IMG_ERROR, "the size is no multiple of 512"},
	[F_SIZE_TOO_BIG] = {"size-too-big", IMG_WARNING,
			    "more than the 2040 GiB that Windows and QEMU allow"},
	[F_SIZE_ORIGINAL_DIFFERS] = {"size-original-differs", IMG_NOTE,
				     "resized since it was made; libvhdi shows the old size"},
	[F_GEOMETRY_WRONG] = {"geometry-wrong", IMG_WARNING,
			      "the geometry is not that of the size"},
	[F_GEOMETRY_SIZE_DISPUTE] =
		{"geometry-size-dispute", IMG_NOTE,
		 "QEMU 7.2 takes the size from the geometry for disks of this creator"},
	[F_FIXED_CUT] = {"fixed-cut", IMG_ERROR, "the file holds less than the footer says"},
	[F_FIXED_SLACK] = {"fixed-slack", IMG_WARNING, "bytes between the data and the footer"},
	[F_HEADER_OUTSIDE] = {"header-outside", IMG_ERROR,
			      "footer: the header is not where it should be"},
	[F_HEADER_MISSING] = {"header-missing", IMG_ERROR, "header: no signature"},
	[F_HEADER_BAD_VERSION] = {"header-bad-version", IMG_ERROR,
				  "header: unknown format version"},
	[F_HEADER_BAD_CHECKSUM] = {"header-bad-checksum", IMG_ERROR, "header: wrong checksum"},
	[F_HEADER_UNUSED_OFFSET] =
		{"header-unused-offset", IMG_WARNING,
		 "header: the unused offset must be all ones; XenServer refuses it"},
	[F_HEADER_RESERVED] = {"header-reserved", IMG_NOTE, "header: reserved bytes are not zero"},
	[F_HEADER_BLOCK_SIZE] = {"header-block-size", IMG_ERROR, "header: impossible block size"},
	[F_HEADER_ENTRIES] = {"header-entries", IMG_ERROR,
			      "header: the number of BAT entries fits neither size nor file"},
	[F_HEADER_BAT_OFFSET] = {"header-bat-offset", IMG_ERROR, "header: the BAT cannot be there"},
	[F_HEADER_PARENT_UNUSED] = {"header-parent-unused", IMG_WARNING,
				    "header: a dynamic disk names a parent"},
	[F_BAT_OUT_OF_FILE] = {"bat-out-of-file", IMG_ERROR,
			       "BAT: the block would lie beyond the file"},
	[F_BAT_WRAPS] = {"bat-wraps", IMG_ERROR,
			 "BAT: the block would end beyond what 32-bit sector numbers reach"},
	[F_BAT_IN_METADATA] = {"bat-in-metadata", IMG_ERROR,
			       "BAT: the block would lie over the file's own structures"},
	[F_BAT_OVERLAP] = {"bat-overlap", IMG_ERROR, "BAT: two blocks claim the same place"},
	[F_BAT_BEYOND_DISK] = {"bat-beyond-disk", IMG_WARNING,
			       "BAT: entries in use beyond the disk's end"},
	[F_BLOCK_CUT] = {"block-cut", IMG_ERROR, "the file ends within a block"},
	[F_BLOCK_UNALIGNED] = {"block-unaligned", IMG_NOTE,
			       "data is not on 4 KiB boundaries, which is slow on most disks"},
	[F_SPACE_LEAKED] = {"space-leaked", IMG_NOTE, "space that nothing owns"},
	[F_SPACE_TRAILING] = {"space-trailing", IMG_WARNING,
			      "space before the end footer that nothing owns"},
	[F_ORPHAN_BLOCK] = {"orphan-block", IMG_WARNING,
			    "what looks like a block, and no BAT entry leads to it"},
	[F_BITMAP_CLEAR_OVER_DATA] = {"bitmap-clear-over-data", IMG_WARNING,
				      "data in sectors that are marked as never written: QEMU "
				      "shows it, others show zeros"},
	[F_BITMAP_BEYOND_DISK] = {"bitmap-beyond-disk", IMG_NOTE,
				  "bitmap: bits behind its last sector"},
	[F_BATMAP_MISSING] = {"batmap-missing", IMG_WARNING,
			      "XenServer expects a batmap behind the BAT"},
	[F_BATMAP_OUTSIDE] = {"batmap-outside", IMG_ERROR,
			      "batmap: does not lie in the file, or over something else"},
	[F_BATMAP_BAD_CHECKSUM] = {"batmap-bad-checksum", IMG_ERROR, "batmap: wrong checksum"},
	[F_BATMAP_FALSE_FULL] =
		{"batmap-false-full", IMG_ERROR,
		 "batmap: says full of a block that is not: XenServer would show stale data"},
	[F_ENCRYPTED] = {"encrypted", IMG_WARNING,
			 "encrypted by XenServer: its data means nothing to us"},
	[F_BITMAP_ORDER] = {"bitmap-order", IMG_WARNING,
			    "made by version 0.1 of XenServer's tapdisk, whose bitmaps have "
			    "another bit order: no tool here reads it"},
	[F_LOCATOR_CODE] = {"locator-code", IMG_WARNING, "locator: unknown platform"},
	[F_LOCATOR_TWICE] = {"locator-twice", IMG_WARNING, "locator: the same platform twice"},
	[F_LOCATOR_LENGTH] = {"locator-length", IMG_WARNING, "locator: impossible length"},
	[F_LOCATOR_OUTSIDE] = {"locator-outside", IMG_ERROR, "locator: not in the file"},
	[F_LOCATOR_SPACE] = {"locator-space", IMG_WARNING,
			     "locator: longer than the space it says it has"},
	[F_LOCATOR_TEXT] = {"locator-text", IMG_WARNING, "locator: not text"},
	[F_LOCATOR_OVERLAP] = {"locator-overlap", IMG_ERROR, "locator: lies over something else"},
	[F_PARENT_UNNAMED] = {"parent-unnamed", IMG_ERROR,
			      "neither locator nor header names the parent"},
	[F_PARENT_MISSING] = {"parent-missing", IMG_WARNING, "the parent was not found"},
	[F_PARENT_NOT_ALLOWED] =
		{"parent-not-allowed", IMG_WARNING,
		 "the parent lies where parents are not looked for; see --parent-dir"},
	[F_PARENT_DAMAGED] = {"parent-damaged", IMG_ERROR, "the parent cannot be opened"},
	[F_PARENT_WRONG_UUID] = {"parent-wrong-uuid", IMG_ERROR,
				 "what the child names is not its parent"},
	[F_PARENT_WRONG_SIZE] = {"parent-wrong-size", IMG_ERROR,
				 "the parent has another size than the child"},
	[F_PARENT_LOOP] = {"parent-loop", IMG_ERROR, "the disk is its own ancestor"},
	[F_PARENT_TOO_DEEP] = {"parent-too-deep", IMG_ERROR, "more layers than are supported"},
	[F_PARENT_RAW] =
		{"parent-raw", IMG_NOTE,
		 "the parent is a raw disk: nothing but its size tells that it is the one"},
	[F_PARENT_TIMESTAMP] = {"parent-timestamp", IMG_NOTE,
				"the parent was written to since the child was made, or restored"},
};

_Static_assert(sizeof(faults) / sizeof(faults[0]) == F_COUNT, "a line for each fault");

struct img_fault fault_make(const struct check *c, enum fault_id id, uint64_t off)
{
	return (struct img_fault){.id = faults[id].id,
				  .what = faults[id].what,
				  .severity = faults[id].severity,
				  .path = c->file.path,
				  .offset = off};
}

void fault_text(char *buf, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf, IMG_FAULT_TEXT, fmt, ap);
	va_end(ap);
}

void fault_report(struct check *c, const struct img_fault *f)
{
	uint64_t *count = f->severity == IMG_ERROR     ? &c->res->errors
			  : f->severity == IMG_WARNING ? &c->res->warnings
						       : &c->res->notes;
	struct img_fault out = *f;

	if (c->quiet)
		return;
	++*count;
	out.mendable &= !c->doubtful;
	c->res->mendable += out.mendable;
	c->opts->fault(c->opts->ctx, &out);
}

void fault_hold(struct check *c, const struct img_fault *f)
{
	if (c->nheld < sizeof(c->held) / sizeof(c->held[0]))
		c->held[c->nheld++] = *f;
}

void fault_release(struct check *c)
{
	for (unsigned i = 0; i < c->nheld; i++) {
		c->held[i].mendable &= c->has_bat || c->footer.type == VHD_FIXED;
		fault_report(c, &c->held[i]);
	}
	c->nheld = 0;
}
