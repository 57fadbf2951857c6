/* SPDX-License-Identifier: BSD-2-Clause */
/* What img.h refuses, and with which code; nothing may be changed or left behind by it. */
#include "config.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img.h"

static int count, failed;
static struct img_err err;
static const uint8_t none[16];

static void ok(bool good, const char *what)
{
	printf("%s %d %s\n", good ? "ok" : "not ok", ++count, what);
	if (!good)
		printf("# %d: %s\n", err.code, err.msg);
	failed |= !good;
	memset(&err, 0, sizeof(err));
}

/* Failed, with this code, and a reason. */
static bool refused(int rc, int code)
{
	return rc < 0 && err.code == code && err.msg[0];
}

static int make(const char *name, enum img_type type, uint64_t size, uint32_t block,
		const char *creator, const char *parent, const uint8_t *uuid)
{
	struct img_create o = {.type = type,
			       .size = size,
			       .block_size = block,
			       .creator = creator,
			       .parent_path = parent,
			       .parent_uuid = uuid};

	return img_create(name, &o, &err);
}

static void test_create(void)
{
	ok(refused(make("x", IMG_DYNAMIC, 0, 0, NULL, NULL, NULL), IMG_USAGE), "a disk of no size");
	ok(refused(make("x", IMG_FIXED, 1000, 0, NULL, NULL, NULL), IMG_USAGE), "half a sector");
	ok(refused(make("x", IMG_DYNAMIC, IMG_VHD_MAX_SIZE + 512, 0, NULL, NULL, NULL), IMG_USAGE),
	   "more than 2040 GiB");
	ok(refused(make("x", IMG_DYNAMIC, 1 << 20, 3 << 20, NULL, NULL, NULL), IMG_USAGE),
	   "a block size that is no power of two");
	ok(refused(make("x", IMG_DYNAMIC, 1 << 20, 2048, NULL, NULL, NULL), IMG_USAGE),
	   "tiny blocks");
	ok(refused(make("x", IMG_DYNAMIC, 1 << 20, 0, "seven", NULL, NULL), IMG_USAGE),
	   "a long creator");
	ok(refused(make("no/x", IMG_DYNAMIC, 1 << 20, 0, NULL, NULL, NULL), IMG_CANTCREAT),
	   "no such folder");
	ok(access("x", F_OK) != 0, "nothing was made");
	ok(make("base.vhd", IMG_DYNAMIC, 1 << 20, 0, NULL, NULL, NULL) == 0 &&
		   refused(make("base.vhd", IMG_DYNAMIC, 1 << 20, 0, NULL, NULL, NULL),
			   IMG_CANTCREAT),
	   "a file that exists");
}

static void test_requests(void)
{
	struct img_open o = {.writable = true};
	uint8_t buf[1024] = {1};
	struct img_chain *c;
	struct img_run run;

	ok(img_open(&c, "base.vhd", &o, &err) == 0, "open");
	ok(refused(img_write(c, buf, 1, 512, false, &err), IMG_BUG), "a write between sectors");
	ok(refused(img_zero(c, 0, 513, false, &err), IMG_BUG), "zeros between sectors");
	ok(refused(img_trim(c, 256, 512, &err), IMG_BUG), "a trim between sectors");
	ok(refused(img_write(c, buf, 1 << 20, 512, false, &err), IMG_DATA),
	   "a write behind the end");
	ok(refused(img_write(c, buf, ~511ull, 1024, false, &err), IMG_DATA),
	   "a write that wraps around");
	ok(refused(img_read(c, buf, (1 << 20) - 512, 1024, &err), IMG_DATA),
	   "a read across the end");
	ok(refused(img_map(c, 0, 0, 1, &run, &err), IMG_BUG), "a map of nothing");
	ok(refused(img_map(c, 1 << 20, 1, 1, &run, &err), IMG_BUG), "a map behind the end");
	ok(refused(img_find_layer(c, ".", &err), IMG_DATA), "a layer that is none");
	ok(refused(img_find_layer(c, "nowhere", &err), IMG_NOINPUT), "a layer that is not there");
	img_close(c);
	o.writable = false;
	ok(img_open(&c, "base.vhd", &o, &err) == 0, "open for reading");
	ok(refused(img_write(c, buf, 0, 512, false, &err), IMG_PERM),
	   "a write to what is open for reading");
	img_close(c);
}

/* Only an empty child of this very leaf may take its place. */
static void test_push(void)
{
	struct img_open o = {.writable = true}, single = {.writable = true, .single = true};
	struct img_chain *c, *child = NULL;
	uint8_t uuid[16], buf[512] = {1};
	struct img *layer;

	ok(img_open(&c, "base.vhd", &o, &err) == 0, "open again");
	memcpy(uuid, img_layer_info(c, 0)->uuid, 16);
	ok(make("other.vhd", IMG_DYNAMIC, 1 << 20, 0, NULL, NULL, NULL) == 0 &&
		   refused(img_push_open(c, "other.vhd", &layer, &err), IMG_DATA),
	   "a disk that is no child");
	ok(make("stranger.avhd", IMG_DIFFERENCING, 1 << 20, 0, NULL, "other.vhd", none) == 0 &&
		   refused(img_push_open(c, "stranger.avhd", &layer, &err), IMG_DATA),
	   "another one's child");
	ok(make("large.avhd", IMG_DIFFERENCING, 2 << 20, 0, NULL, "base.vhd", uuid) == 0 &&
		   refused(img_push_open(c, "large.avhd", &layer, &err), IMG_DATA),
	   "a child of another size");
	ok(make("child.avhd", IMG_DIFFERENCING, 1 << 20, 0, NULL, "base.vhd", uuid) == 0 &&
		   img_open(&child, "child.avhd", &single, &err) == 0 &&
		   img_write(child, buf, 0, 512, false, &err) == 0,
	   "a child that is written to");
	ok(refused(img_push_open(c, "child.avhd", &layer, &err), IMG_AGAIN), "a child in use");
	img_close(child);
	ok(refused(img_push_open(c, "child.avhd", &layer, &err), IMG_DATA),
	   "a child that is not empty");
	ok(refused(img_push_open(c, "nowhere", &layer, &err), IMG_NOINPUT),
	   "a child that is not there");
	ok(img_layers(c) == 1, "the chain is as it was");
	img_close(c);
}

static void test_depth(void)
{
	struct img_open o = {0};
	struct img_chain *c;
	char name[32], parent[32] = "base.vhd";
	int rc = 0;

	for (int i = 1; i < IMG_MAX_LAYERS && rc == 0; i++) {
		uint8_t uuid[16];
		struct img_open single = {.single = true};

		rc = img_open(&c, parent, &single, &err);
		if (rc == 0) {
			memcpy(uuid, img_layer_info(c, 0)->uuid, 16);
			img_close(c);
			snprintf(name, sizeof(name), "deep-%d.avhd", i);
			rc = make(name, IMG_DIFFERENCING, 1 << 20, 0, NULL, parent, uuid);
			strcpy(parent, name);
		}
	}
	ok(rc == 0 && img_open(&c, parent, &o, &err) == 0 && img_layers(c) == IMG_MAX_LAYERS,
	   "a chain of 256 layers");
	img_close(c);
	ok(refused(img_snapshot(parent, "too-deep.avhd", &o, false, &err), IMG_DATA) &&
		   access("too-deep.avhd", F_OK) != 0,
	   "one more");
}

int main(void)
{
	char dir[] = "/tmp/qsm-refusals.XXXXXX", command[64];

	if (!mkdtemp(dir) || chdir(dir) < 0) {
		perror(dir);
		return 74;
	}
	test_create();
	test_requests();
	test_push();
	test_depth();
	printf("1..%d\n", count);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return chdir("/") < 0 || system(command) || failed;
}
