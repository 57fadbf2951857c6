/* SPDX-License-Identifier: BSD-2-Clause */
/* Compression of single DATA records. */
#include "config.h"

#include <stdlib.h>

#include "stream_impl.h"

#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>

struct stream_codec {
	ZSTD_CCtx *pack; /* only where a level was given */
	ZSTD_DCtx *unpack;
};

struct stream_codec *stream_codec_new(int level, struct img_err *err)
{
	struct stream_codec *c = calloc(1, sizeof(*c));

	if (!c)
		goto fail;
	if (level) {
		c->pack = ZSTD_createCCtx();
		if (!c->pack ||
		    ZSTD_isError(ZSTD_CCtx_setParameter(c->pack, ZSTD_c_compressionLevel, level)))
			goto fail;
	} else {
		c->unpack = ZSTD_createDCtx();
		if (!c->unpack)
			goto fail;
	}
	return c;
fail:
	img_err_set(err, IMG_AGAIN, "out of memory");
	stream_codec_free(c);
	return NULL;
}

void stream_codec_free(struct stream_codec *c)
{
	if (!c)
		return;
	ZSTD_freeCCtx(c->pack);
	ZSTD_freeDCtx(c->unpack);
	free(c);
}

/* Measured with zstd 1.5, for records of STREAM_PIECE; a step has the largest of its levels. */
size_t stream_codec_memory(int level)
{
	return level <= 3    ? 1280u << 10
	       : level <= 6  ? 3584u << 10
	       : level <= 8  ? 6656u << 10
	       : level <= 12 ? 12800u << 10
			     : 17664u << 10;
}

/* A sixteenth is the least that is worth the receiver's work. */
size_t stream_pack(struct stream_codec *c, const void *src, size_t len, void *dst, bool *failed)
{
	size_t n = ZSTD_compress2(c->pack, dst, len - len / 16, src, len);

	if (!ZSTD_isError(n))
		return n;
	*failed |= ZSTD_getErrorCode(n) != ZSTD_error_dstSize_tooSmall;
	return 0;
}

bool stream_unpack(struct stream_codec *c, const void *src, size_t stored, void *dst, size_t len)
{
	/* One frame: zstd itself would take several, and skip what it does not know. */
	return ZSTD_findFrameCompressedSize(src, stored) == stored &&
	       ZSTD_decompressDCtx(c->unpack, dst, len, src, stored) == len;
}

#else

struct stream_codec *stream_codec_new(int level, struct img_err *err)
{
	img_err_set(err, IMG_UNAVAIL, "this build cannot %s streams: zstd was left out",
		    level ? "compress" : "read compressed");
	return NULL;
}

void stream_codec_free(struct stream_codec *c)
{
	(void)c;
}

size_t stream_codec_memory(int level)
{
	(void)level;
	return 0;
}

size_t stream_pack(struct stream_codec *c, const void *src, size_t len, void *dst, bool *failed)
{
	(void)c, (void)src, (void)len, (void)dst, (void)failed;
	return 0;
}

bool stream_unpack(struct stream_codec *c, const void *src, size_t stored, void *dst, size_t len)
{
	(void)c, (void)src, (void)stored, (void)dst, (void)len;
	return false;
}
#endif
