"""Word error rates of a recogniser: synthetic voices, languages, noise, music, echo, one thread.

``python -m benchmarks recognised`` has espeak-ng speak 20 sentences a language, 0.8 s apart, adds
what a condition asks for, and recognises the whole as the sound of a file. The rate is the edit
distance of all words over their number; the real-time factor counts CPU seconds of recognition
alone, after a piece to warm up. Sound without speech should give no word at all.
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.machine import machine

SENTENCES = {
    "en": (
        "The quick brown fox jumps over the lazy dog.",
        "Please open the front door and bring me the red book from the kitchen table.",
        "The train to London leaves at half past nine in the morning.",
        "We will sail to the old harbour before the storm begins.",
        "My brother sold his violin because he needed a new lantern.",
        "There is a castle on the island behind the church.",
        "The doctor said that the garden needs more water in summer.",
        "Nobody knows why the bridge was closed last winter.",
        "She wants to paint the house green and plant some apple trees.",
        "I will meet you at the station after the concert on Friday.",
        "The children played in the snow until it was dark.",
        "He forgot his umbrella and walked home in the rain.",
        "The museum opens at ten and closes before dinner.",
        "Two horses ran across the field behind the farm.",
        "Turn left at the bakery and follow the river.",
        "The soup needs a little more salt and pepper.",
        "Our neighbours are building a small boat in their yard.",
        "The letter arrived three weeks after it was written.",
        "Can you tell me how much this painting costs?",
        "The old man sings the same song every evening.",
    ),
    "de": (
        "Der Zug nach Hamburg fährt morgen früh um neun Uhr ab.",
        "Meine Schwester hat gestern ein rotes Fahrrad gekauft.",
        "Wir segeln zum alten Hafen, bevor der Sturm beginnt.",
        "Niemand weiß, warum die Brücke im Winter geschlossen war.",
        "Bitte öffne die Tür und bring mir das Buch vom Küchentisch.",
        "Der Arzt sagt, dass der Garten mehr Wasser braucht.",
        "Hinter der Kirche steht ein kleines Haus mit einem grünen Dach.",
        "Die Kinder spielten im Schnee, bis es dunkel wurde.",
        "Er hat seinen Schirm vergessen und ging im Regen nach Hause.",
        "Das Museum öffnet um zehn und schließt vor dem Abendessen.",
        "Zwei Pferde liefen über das Feld hinter dem Bauernhof.",
        "Die Suppe braucht noch etwas Salz und Pfeffer.",
        "Unsere Nachbarn bauen ein kleines Boot in ihrem Hof.",
        "Der Brief kam drei Wochen später an.",
        "Können Sie mir sagen, was dieses Bild kostet?",
        "Der alte Mann singt jeden Abend dasselbe Lied.",
        "Am Freitag treffen wir uns nach dem Konzert am Bahnhof.",
        "Sie möchte das Haus streichen und Apfelbäume pflanzen.",
        "Biegen Sie an der Bäckerei links ab und folgen Sie dem Fluss.",
        "Mein Bruder hat seine Geige verkauft.",
    ),
    "fr": (
        "Le train pour Paris part demain matin à neuf heures.",
        "Ma sœur a acheté un vélo rouge hier après-midi.",
        "Nous irons au vieux port avant la tempête.",
        "Personne ne sait pourquoi le pont était fermé cet hiver.",
        "Ouvre la porte et apporte-moi le livre qui est sur la table.",
        "Le médecin dit que le jardin a besoin de plus d'eau.",
        "Derrière l'église il y a une petite maison avec un toit vert.",
        "Les enfants ont joué dans la neige jusqu'à la nuit.",
        "Il a oublié son parapluie et il est rentré sous la pluie.",
        "Le musée ouvre à dix heures et ferme avant le dîner.",
        "Deux chevaux couraient dans le champ derrière la ferme.",
        "La soupe manque un peu de sel et de poivre.",
        "Nos voisins construisent un petit bateau dans leur cour.",
        "La lettre est arrivée trois semaines plus tard.",
        "Pouvez-vous me dire combien coûte ce tableau?",
        "Le vieil homme chante la même chanson tous les soirs.",
        "Vendredi nous nous retrouverons à la gare après le concert.",
        "Elle veut peindre la maison et planter des pommiers.",
        "Tournez à gauche après la boulangerie et suivez la rivière.",
        "Mon frère a vendu son violon.",
    ),
    "es": (
        "El tren para Madrid sale mañana a las nueve.",
        "Mi hermana compró ayer una bicicleta roja.",
        "Iremos al puerto viejo antes de la tormenta.",
        "Nadie sabe por qué el puente estaba cerrado en invierno.",
        "Abre la puerta y tráeme el libro que está en la mesa.",
        "El médico dice que el jardín necesita más agua.",
        "Detrás de la iglesia hay una casa pequeña con techo verde.",
        "Los niños jugaron en la nieve hasta la noche.",
        "Olvidó su paraguas y volvió a casa bajo la lluvia.",
        "El museo abre a las diez y cierra antes de la cena.",
        "Dos caballos corrían por el campo detrás de la granja.",
        "A la sopa le falta un poco de sal y pimienta.",
        "Nuestros vecinos construyen un barco pequeño en su patio.",
        "La carta llegó tres semanas más tarde.",
        "Me puede decir cuánto cuesta este cuadro?",
        "El viejo canta la misma canción todas las noches.",
        "El viernes nos encontraremos en la estación después del concierto.",
        "Ella quiere pintar la casa y plantar manzanos.",
        "Gire a la izquierda en la panadería y siga el río.",
        "Mi hermano vendió su violín.",
    ),
}  # fmt: skip
PAUSE_S, SILENCE_S = 0.8, 60.0
Sound = np.ndarray


def spoken(voice: str, sentences: Sequence[str], rate: int) -> Sound:
    """Return sentences as sound [N] float32 at ``rate``."""
    parts = [np.zeros(rate, np.float32)]
    for text in sentences:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = ["espeak-ng", "-v", voice, "-s", "150", "-w", file.name, text]
            subprocess.run(command, check=True)
            with wave.open(file.name) as said:
                samples = np.frombuffer(said.readframes(said.getnframes()), np.int16) / 32768
                parts.append(resampled(samples, said.getframerate(), rate))
        parts.append(np.zeros(round(PAUSE_S * rate), np.float32))
    return np.concatenate(parts)


def resampled(samples: Sound, own: int, rate: int) -> Sound:
    """Return samples at another, lower rate, without what lies above it."""
    count = round(len(samples) * rate / own)
    heard = np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * count / len(samples)
    return heard.astype(np.float32)


def level(sound: Sound) -> float:
    """Return the root mean square of what is loud enough to be speech."""
    loud = sound[np.abs(sound) > 0.02]
    return float(np.sqrt(np.mean(loud**2))) if len(loud) else 0.1


def mixed(sound: Sound, other: Sound, snr_db: float) -> Sound:
    scale = level(sound) / 10 ** (snr_db / 20) / max(1e-9, float(np.sqrt(np.mean(other**2))))
    return (sound + scale * other).astype(np.float32)


def noise(count: int, rate: int) -> Sound:
    return np.random.default_rng(0).normal(0, 1, count).astype(np.float32)


def music(count: int, rate: int) -> Sound:
    """Return chords of plucked strings with overtones, a bass and a drum on the beat."""
    rng, out, beat = np.random.default_rng(1), np.zeros(count), rate // 2
    chords = ((220, 277, 330), (294, 370, 440), (247, 311, 370), (330, 415, 494))
    for number, begin in enumerate(range(0, count, beat)):
        t = np.arange(min(beat, count - begin)) / rate
        tones = [*chords[number // 4 % 4], chords[number // 4 % 4][0] / 2]
        fades = np.exp(-3 * t)
        for tone in tones:
            for overtone in (1, 2, 3):
                out[begin : begin + len(t)] += (
                    fades * np.sin(2 * np.pi * tone * overtone * t) / overtone
                )
        out[begin : begin + len(t)] += rng.normal(0, 1, len(t)) * np.exp(-40 * t)
    return out.astype(np.float32)


def echoed(sound: Sound, rate: int, seconds: float) -> Sound:
    """Return sound in a room whose echo falls by 60 dB in so many seconds."""
    t = np.arange(round(seconds * rate)) / rate
    room = np.random.default_rng(2).normal(0, 1, len(t)) * 10 ** (-3 * t / seconds)
    room *= 0.5 / np.sqrt(np.sum(room**2))  # the echo has a quarter of the sound's energy
    room[0] = 1.0
    size = 1 << (len(sound) + len(room) - 1).bit_length()
    heard = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(room, size), size)[: len(sound)]
    return heard.astype(np.float32)


def telephone(sound: Sound, rate: int) -> Sound:
    """Return sound without what lies outside 300 to 3,400 Hz."""
    bands, heard = np.fft.rfftfreq(len(sound), 1 / rate), np.fft.rfft(sound)
    heard[(bands < 300) | (bands > 3400)] = 0
    return np.fft.irfft(heard, len(sound)).astype(np.float32)


def conditions(rate: int) -> list[tuple[str, str, str, str | None, Callable[[Sound], Sound]]]:
    """Return (name, voice, language of the sentences, language that is stated, what is done)."""

    def plain(sound: Sound) -> Sound:
        return sound

    found = [
        (voice, voice, "en", "en", plain) for voice in ("en-us", "en-gb", "en-us+f3", "en-us+m7")
    ]
    for name in ("de", "fr", "es"):
        found.append((f"{name}, stated", name, name, name, plain))
        found.append((f"{name}, found", name, name, None, plain))
    found.append(("de, but en is stated", "de", "de", "en", plain))
    for db in (20, 10, 5):
        found.append((f"en-us, white noise {db} dB below", "en-us", "en", "en",
                      lambda s, db=db: mixed(s, noise(len(s), rate), db)))  # fmt: skip
    for db in (10, 5, 0):
        found.append((f"en-us, music {db} dB below", "en-us", "en", "en",
                      lambda s, db=db: mixed(s, music(len(s), rate), db)))  # fmt: skip
    for seconds in (0.4, 1.2):
        found.append((f"en-us, echo of {seconds} s", "en-us", "en", "en",
                      lambda s, seconds=seconds: echoed(s, rate, seconds)))  # fmt: skip
    found.append(("en-us, 300 to 3,400 Hz", "en-us", "en", "en", lambda s: telephone(s, rate)))
    found.append(("en-us, 40 dB quieter", "en-us", "en", "en", lambda s: s / np.float32(100)))
    return found


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def distance(true: Sequence[str], told: Sequence[str]) -> int:
    """Return the least number of words to add, leave out or change."""
    row = list(range(len(told) + 1))
    for number, one in enumerate(true, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(told, 1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (one != other)),
            )
    return row[-1]


def recognised(hears, sound: Sound, rate: int) -> tuple[list[str], float]:
    """Return the notes' texts, and the CPU seconds that they took."""
    from streammem.audio.recogniser import pieces

    began, texts = time.process_time(), []
    blocks = ((at / rate, sound[at : at + rate]) for at in range(0, len(sound), rate))
    for _, samples in pieces(blocks, hears.piece_s):
        texts += [note.text for note in hears.transcribe(samples) if hasattr(note, "text")]
    return texts, time.process_time() - began


def main(arguments: list[str]) -> int:
    from streammem.audio.recogniser import RATE
    from streammem.models.transcription import recogniser

    parser = argparse.ArgumentParser(prog="python -m benchmarks recognised", description=__doc__)
    parser.add_argument("--recogniser", default="whisper-base")
    parser.add_argument("--show", action="store_true", help="print what was recognised, too")
    options = parser.parse_args(arguments)
    rows, sounds, hearers = {}, {}, {}

    def hearing(language: str | None):
        if language is None or language not in hearers:  # what one has found it keeps
            hearers[language] = recogniser(options.recogniser, language)()
            recognised(hearers[language], noise(RATE, RATE) * np.float32(0.001), RATE)
        return hearers[language]

    for name, voice, language, stated, change in conditions(RATE):
        if voice not in sounds:
            sounds[voice] = spoken(voice, SENTENCES[language], RATE)
        sound, true = change(sounds[voice]), words(" ".join(SENTENCES[language]))
        texts, cpu_s = recognised(hearing(stated), sound, RATE)
        seconds, told = len(sound) / RATE, words(" ".join(texts))
        rows[name] = {
            "words": len(true), "word_error_rate": round(distance(true, told) / len(true), 3),
            "seconds": round(seconds, 1), "real_time_factor": round(cpu_s / seconds, 3),
        }  # fmt: skip
        print(f"{name:34} {rows[name]}", flush=True)
        if options.show:
            print(*texts, sep="\n")
    count = round(SILENCE_S * RATE)
    for name, sound in (
        ("silence", np.zeros(count, np.float32)),
        ("white noise", noise(count, RATE) * np.float32(0.05)),
        ("music", music(count, RATE) * np.float32(0.1)),
    ):
        texts, cpu_s = recognised(hearing(None), sound, RATE)
        rows[name] = {"words": 0, "recognised": len(words(" ".join(texts))), "seconds": SILENCE_S,
                      "real_time_factor": round(cpu_s / SILENCE_S, 3)}  # fmt: skip
        print(f"{name:34} {rows[name]}", flush=True)
    print(json.dumps({"benchmark": "recognised", "rows": rows, "machine": machine("av")}))
    return 0
